"""The rotation of a streaming model: queries and keys in place, in one operation.

A head has D numbers, of which R neighbours are rotated, in pairs: number r with its partner, by an angle of one frequency.
"""

from dataclasses import dataclass

import torch

from workers.engines.shared.rope import cos_sin


@dataclass(frozen=True, slots=True)
class Rope:
    """`first`: the first rotated number of a head. `partner_R`: of each its partner, counted from `first`; None: half
    of them away, as transformers' `rotate_half` pairs them.

    `frequency_R`: float64. Negative where sin is subtracted, which leaves cos. `scaling`: multiplies queries and keys alike
    (YaRN's attention factor).
    """

    first: int
    frequency_R: torch.Tensor
    partner_R: torch.Tensor | None
    scaling: float

    def tables(self, position_M: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [M, R] of positions, for `rotate_` of heads of `dtype`."""
        return cos_sin(position_M, self.frequency_R, self.scaling, dtype)

    def rotate_(self, x_NMD: torch.Tensor, cos_MR: torch.Tensor, sin_MR: torch.Tensor) -> None:
        """Rotate in place, in the tables' precision."""
        size = cos_MR.shape[1]
        part_NMR = x_NMD.narrow(2, self.first, size)
        wide_NMR = part_NMR.to(cos_MR.dtype)
        partners_NMR = (
            wide_NMR.roll(size // 2, 2) if self.partner_R is None else wide_NMR[..., self.partner_R]
        )
        part_NMR.copy_(torch.addcmul(wide_NMR * cos_MR, partners_NMR, sin_MR))


def half_split(inv_freq_F: torch.Tensor, scaling: float) -> Rope:
    """The first 2 F numbers of a head, in pairs (i, i + F)."""
    frequency_F = inv_freq_F.double()
    return Rope(0, torch.cat([-frequency_F, frequency_F]), None, scaling)
