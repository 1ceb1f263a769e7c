"""RoPE applied once per key and twice per query, with angles in float64.

transformers multiplies position and frequency in float32: 3e-2 rad off at a million tokens, several bf16 ulps.
Here the angle is float64, cos and sin and the rotation are float32 (float64 in a float64 model), rounded once.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.session import ModeUnsupported

#: Frequencies that do not depend on how long the text is. `dynamic` and `longrope` change them along the way, which
#: keys rotated once, when written, cannot follow.
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class Rope:
    """`inv_freq_F`: float64, one per pair of numbers; `scaling`: multiplies cos and sin (YaRN's attention factor).

    The pairs are (i, i + F) of the first R = 2F numbers of a head; the other numbers are not rotated.
    """

    inv_freq_F: torch.Tensor
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
        dtype = torch.promote_types(model.dtype, torch.float32)
        return cls(rotary.inv_freq.double(), float(rotary.attention_scaling), dtype)

    def tables(self, position_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos [N, R] and sin [N, R] of float64 positions; sin's first half carries rotate_half's minus."""
        angle_NF = position_N[:, None] * self.inv_freq_F
        cos_NF = (angle_NF.cos() * self.scaling).to(self.dtype)
        sin_NF = (angle_NF.sin() * self.scaling).to(self.dtype)
        return torch.cat([cos_NF, cos_NF], -1), torch.cat([-sin_NF, sin_NF], -1)


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first R numbers of the last dimension in place: five launches, whatever the family."""
    numbers = cos.shape[-1]
    before = x[..., :numbers].to(cos.dtype)
    x[..., :numbers] = torch.addcmul(before * cos, before.roll(numbers // 2, -1), sin)
    return x


class NoRotation(nn.Module):
    """Stands in for a model's rotary embedding: what it returns leaves queries and keys as they are.

    `width` 0: zero numbers are rotated (GPT-NeoX, which rotates part of a head). Else cos = 1, sin = 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, position_ids.shape[-1], self.width)
        return x.new_ones(shape), x.new_zeros(shape)
