"""The rotation of a streaming model: queries and keys in place, in one operation.

R = 2F numbers of a head are rotated, in pairs (i, i + F).
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from workers.engines.shared.rope import cos_sin


@dataclass(frozen=True, slots=True)
class Rope:
    """`frequency_R`: float64. Negative in the first half, which gives sin the minus of `rotate_half` and leaves cos.

    `scaling`: multiplies queries and keys alike (YaRN's attention factor). `dtype`: the model's.
    """

    frequency_R: torch.Tensor
    scaling: float
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Rope":
        rotary = model.base_model.rotary_emb
        frequency_F = rotary.inv_freq.double()
        return cls(
            frequency_R=torch.cat([-frequency_F, frequency_F]),
            scaling=float(rotary.attention_scaling),
            dtype=model.dtype,
        )

    def tables(self, position_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [M, R] of positions, for `rotate_`."""
        return cos_sin(position_M, self.frequency_R, self.scaling, self.dtype)


def rotate_(x_NMD: torch.Tensor, cos_MR: torch.Tensor, sin_MR: torch.Tensor) -> None:
    """Rotate the first R of D numbers in place, in the tables' precision."""
    size = cos_MR.shape[1]
    part_NMR = x_NMD.narrow(2, 0, size)
    wide_NMR = part_NMR.to(cos_MR.dtype)
    part_NMR.copy_(torch.addcmul(wide_NMR * cos_MR, wide_NMR.roll(size // 2, 2), sin_MR))
