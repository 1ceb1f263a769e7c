"""The oracle draft: proposes from a recording of the greedy output, right with a given probability.

It replaces what a draft model proposes, not the draft model's work, so that speed is measured at a known acceptance rate
and the output stays lossless.
T recorded tokens, g drafted tokens of a round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.modes import Speculation


@dataclass(frozen=True, slots=True)
class Oracle:
    """`recorded_T`: the greedy output, int64. `right_Tg`: which proposals are right. Both on the device.

    A round that starts at output index i reads row i of `right_Tg`.
    """

    recorded_T: torch.Tensor
    right_Tg: torch.Tensor
    vocab_size: int

    def propose(self, index: int | torch.Tensor) -> torch.Tensor:
        """[g] tokens for the output indices from `index` on. Where not right, the recorded token plus one.

        `index`: an int, or a scalar on the device, which is then not read by the host. Beyond the recording, its last
        token counts as recorded.
        """
        last, drafted = len(self.recorded_T) - 1, self.right_Tg.shape[1]
        place_g = (index + torch.arange(drafted, device=self.recorded_T.device)).clamp(max=last)
        recorded_g = self.recorded_T[place_g]
        right_g = self.right_Tg[place_g[:1]][0]
        return torch.where(right_g, recorded_g, (recorded_g + 1) % self.vocab_size)


def draw_oracle(recorded_T: torch.Tensor, speculation: Speculation, vocab_size: int, seed: int) -> Oracle:
    """An oracle on the device of `recorded_T`. Drawn on the host: the same on every device."""
    rates = torch.tensor(speculation.rates, dtype=torch.float32)
    draws_Tg = torch.rand(len(recorded_T), len(rates), generator=torch.Generator().manual_seed(seed))
    return Oracle(recorded_T, (draws_Tg < rates).to(recorded_T.device), vocab_size)


class Recording:
    """Keeps the oracle of the last prompt, so that a warm-up records for the run that follows."""

    def __init__(self) -> None:
        self._prompt_BT: torch.Tensor | None = None
        self._oracle: Oracle | None = None

    def oracle(self, prompt_BT: torch.Tensor, length: int, record: Callable[[], Oracle]) -> Oracle:
        """The oracle of this prompt for `length` new tokens. Calls `record` where none is at hand."""
        known = self._oracle
        if (
            known is None
            or self._prompt_BT is None
            or len(known.recorded_T) < length
            or not torch.equal(self._prompt_BT, prompt_BT)
        ):
            known = None
        if known is None:
            known = record()
            self._prompt_BT, self._oracle = prompt_BT, known
        return known
