"""Cos and sin of the tokens of a pass, and the rotation of a head."""

from dataclasses import dataclass

import torch

from workers.engines.graph.weights import Rotary
from workers.engines.shared.rope import cos_sin


@dataclass(frozen=True, slots=True)
class Angles:
    """cos and sin [M, F] for the M tokens of a pass. `far`: where a query sits as the sinks see it."""

    cos_MF: torch.Tensor
    sin_MF: torch.Tensor
    far_cos_MF: torch.Tensor
    far_sin_MF: torch.Tensor


def angles(start: torch.Tensor, tokens: int, rope: Rotary, far_limit: int, dtype: torch.dtype) -> Angles:
    """For positions `start .. start + tokens`; the far query sits at `min(position, far_limit)`."""
    position_M = start + torch.arange(tokens, device=start.device)
    near = cos_sin(position_M, rope.inv_freq_F, rope.scaling, dtype)
    far = cos_sin(position_M.clamp(max=far_limit), rope.inv_freq_F, rope.scaling, dtype)
    return Angles(*near, *far)


def rotate(
    x_BMHD: torch.Tensor, cos_MF: torch.Tensor, sin_MF: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """Rotation of the first 2 F numbers of each head; the rest passes (partial rotary). Pairs are half-split, or neighbours
    where `interleaved`."""
    F = cos_MF.shape[1]
    cos_MHF, sin_MHF = cos_MF[:, None, :], sin_MF[:, None, :]
    turning = x_BMHD[..., : 2 * F].to(cos_MF.dtype)
    first, second = turning.unflatten(-1, (F, 2)).unbind(-1) if interleaved else turning.chunk(2, -1)
    both = first * cos_MHF - second * sin_MHF, second * cos_MHF + first * sin_MHF
    turned = torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)
    return torch.cat([turned.to(x_BMHD.dtype), x_BMHD[..., 2 * F :]], dim=-1)
