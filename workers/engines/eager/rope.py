"""RoPE with angles in float64.

transformers multiplies position and frequency in float32: 3e-2 rad off at a million tokens, several bf16 ulps.
Here the angle is float64; cos, sin and the rotation are float32 (float64 in a float64 model), rounded once.
R = 2F numbers of a head are rotated, in pairs (i, i + F).
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from workers.engines.session import ModeUnsupported

#: Frequencies that do not depend on how long the text is. `dynamic` and `longrope` change them along the way, which
#: keys rotated once, when written, cannot follow.
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class Rope:
    """`frequency_R`: float64, with rotate_half's minus on the first half: it changes sin there, and not cos.

    `scaling`: multiplies queries and keys alike (YaRN's attention factor). `dtype`: of cos, sin and the rotation.
    """

    frequency_R: torch.Tensor
    scaling: float
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Rope":
        """Raises `ModeUnsupported` for scaling that depends on the length."""
        rotary = model.base_model.rotary_emb
        if rotary.rope_type not in STATIC_ROPE:
            raise ModeUnsupported(
                f"streaming rotates a key once, but rope type {rotary.rope_type!r} of {type(model).__name__} "
                f"changes its frequencies with the length (works: {', '.join(sorted(STATIC_ROPE))})"
            )
        frequency_F = rotary.inv_freq.double()
        return cls(
            frequency_R=torch.cat([-frequency_F, frequency_F]),
            scaling=float(rotary.attention_scaling),
            dtype=torch.promote_types(model.dtype, torch.float32),
        )

    def tables(self, position_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [M, R] of float64 positions, for `rotate_`."""
        angle_MR = position_M[:, None] * self.frequency_R
        cos_MR, sin_MR = angle_MR.cos().to(self.dtype), angle_MR.sin().to(self.dtype)
        if self.scaling == 1.0:
            return cos_MR, sin_MR
        return cos_MR * self.scaling, sin_MR * self.scaling


def rotate_(x_NMD: torch.Tensor, cos_MR: torch.Tensor, sin_MR: torch.Tensor) -> None:
    """Rotate the first R of D numbers in place, in the tables' precision."""
    size = cos_MR.shape[1]
    part_NMR = x_NMD.narrow(2, 0, size)
    wide_NMR = part_NMR.to(cos_MR.dtype)
    part_NMR.copy_(torch.addcmul(wide_NMR * cos_MR, wide_NMR.roll(size // 2, 2), sin_MR))
