"""Rotary position embedding: angles in float64, rotations in float32 (float64 in float64 models), rounded once.

`position * inv_freq` in float32, as transformers computes it, is off by 3e-2 rad at position one million; in float64 by
1e-10.
"""

import torch


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a model of `dtype` is summed and rotated: float32, or float64 for float64 models."""
    return torch.promote_types(dtype, torch.float32)


def cos_sin(
    position_M: torch.Tensor, frequency_F: torch.Tensor, scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [M, F] of `position * frequency`, times `scaling`, in `working(dtype)`. `frequency_F`: float64."""
    angle_MF = position_M.to(torch.float64)[:, None] * frequency_F
    cos_MF, sin_MF = angle_MF.cos(), angle_MF.sin()
    if scaling != 1.0:
        cos_MF, sin_MF = cos_MF * scaling, sin_MF * scaling
    return cos_MF.to(working(dtype)), sin_MF.to(working(dtype))
