"""Rotary position embedding: angles in float64, rotation in float32 (float64 for float64 models), rounded once.

`position * inv_freq` in float32 is off by 3e-2 rad at position one million; in float64 by 1e-10.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Angles:
    """cos and sin [M, F] for the M tokens of a pass. `far`: where a query sits as the sinks see it."""

    cos_MF: torch.Tensor
    sin_MF: torch.Tensor
    far_cos_MF: torch.Tensor
    far_sin_MF: torch.Tensor


def working(dtype: torch.dtype) -> torch.dtype:
    """What is summed and rotated in: float32, or float64 for float64 models."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def angles(
    start: torch.Tensor,
    tokens: int,
    inv_freq_F: torch.Tensor,
    scaling: float,
    far_limit: int,
    dtype: torch.dtype,
) -> Angles:
    """For positions `start .. start + tokens`; the far query sits at `min(position, far_limit)`."""
    position_M = start + torch.arange(tokens, device=start.device)
    near_cos, near_sin = _cos_sin(position_M, inv_freq_F, scaling, dtype)
    far_cos, far_sin = _cos_sin(position_M.clamp(max=far_limit), inv_freq_F, scaling, dtype)
    return Angles(near_cos, near_sin, far_cos, far_sin)


def _cos_sin(
    position_M: torch.Tensor, inv_freq_F: torch.Tensor, scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    angle_MF = position_M.to(torch.float64)[:, None] * inv_freq_F[None, :]
    return (angle_MF.cos() * scaling).to(working(dtype)), (angle_MF.sin() * scaling).to(working(dtype))


def rotate(x_BMHD: torch.Tensor, cos_MF: torch.Tensor, sin_MF: torch.Tensor) -> torch.Tensor:
    """Half-split rotation of the first 2 F numbers of each head; the rest passes (partial rotary)."""
    F = cos_MF.shape[1]
    cos_MHF, sin_MHF = cos_MF[:, None, :], sin_MF[:, None, :]
    first, second = x_BMHD[..., :F].to(cos_MF.dtype), x_BMHD[..., F : 2 * F].to(cos_MF.dtype)
    turned = torch.cat([first * cos_MHF - second * sin_MHF, second * cos_MHF + first * sin_MHF], dim=-1)
    return torch.cat([turned.to(x_BMHD.dtype), x_BMHD[..., 2 * F :]], dim=-1)
