"""RoPE with angles in float64.

transformers multiplies position and frequency in float32: 3e-2 rad off at a million tokens, several bf16 ulps.
Here the angle is float64; cos, sin and the rotation are float32 (float64 in a float64 model), and the cache rounds
once. R = 2F numbers of a head are rotated, in pairs (i, i + F).
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from workers.session import ModeUnsupported

#: Frequencies that do not depend on how long the text is. `dynamic` and `longrope` change them along the way, which
#: keys rotated once, when written, cannot follow.
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class Rope:
    """`frequency_R`: float64. `signed_R`: the same with rotate_half's minus on the first half.

    `scaling`: multiplies queries and keys alike (YaRN's attention factor). `dtype`: of cos, sin and the rotation.
    """

    frequency_R: torch.Tensor
    signed_R: torch.Tensor
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
            frequency_R=torch.cat([frequency_F, frequency_F]),
            signed_R=torch.cat([-frequency_F, frequency_F]),
            scaling=float(rotary.attention_scaling),
            dtype=torch.promote_types(model.dtype, torch.float32),
        )

    def tables(self, position_Q: torch.Tensor, shift_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [2, Q, R]: to rotate to `position` (float64), and to rotate on from there by `shift`.

        The second sin has rotate_half's minus in it already: a half swapped times it is the half rotated.
        """
        angle_2QR = torch.stack([position_Q[:, None] * self.frequency_R, shift_Q[:, None] * self.signed_R])
        return angle_2QR.cos().to(self.dtype), angle_2QR.sin().to(self.dtype)
