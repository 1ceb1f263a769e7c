"""Forced length: the end of text is noted and suppressed. The recorder is told of each token that the host knows.

B batch, V vocabulary.
"""

import torch
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from workers.attempt import Phase
from workers.engines.session import Recorder

_NEVER = 2**62


class NoteEos(LogitsProcessor):
    """Notes, on the device, at which indices the greedy choice would have ended the text.

    Runs after the repetition penalty and before `SuppressEos`. Verification may look at an index several times; the
    last look is the one at the text that stayed, for a round begins where the last one's accepted tokens end.
    """

    def __init__(self, eos_ids: list[int], prompt_tokens: int, indices: int, device: torch.device) -> None:
        self._eos_ids = torch.tensor(eos_ids, device=device)
        self._prompt_tokens = prompt_tokens
        self._ends = torch.zeros(indices, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        index = input_ids.shape[1] - self._prompt_tokens
        self._ends[index] = torch.isin(scores.argmax(-1), self._eos_ids).any()
        return scores

    def first(self, new_tokens: int) -> int | None:
        """Return the first of `new_tokens` indices at which a sequence of the batch would have ended, None where none would.
        Waits for the device.
        """
        ends = self._ends[:new_tokens].nonzero()
        return int(ends[0]) if len(ends) else None


class NoteNonFinite(LogitsProcessor):
    """Notes, on the device, the first index at which a logit was not finite. It runs before all others."""

    def __init__(self, prompt_tokens: int, device: torch.device) -> None:
        self._prompt_tokens = prompt_tokens
        self._first = torch.full((), _NEVER, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        index = input_ids.shape[1] - self._prompt_tokens
        found = torch.where(scores.isfinite().all(), _NEVER, index)
        self._first = torch.minimum(self._first, found)
        return scores

    def first(self) -> int | None:
        """Return that index, None where all were finite. Waits for the device."""
        first = int(self._first)
        return None if first == _NEVER else first


class SuppressEos(LogitsProcessor):
    """Does what `min_new_tokens = max_new_tokens` does, as a processor that runs after `NoteEos`."""

    def __init__(self, eos_ids: list[int], device: torch.device) -> None:
        self._eos_ids = torch.tensor(eos_ids, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, self._eos_ids, -torch.inf)


class TokenCount(BaseStreamer):
    """Tells the recorder how many tokens are known. A streamer gets its tokens on the host, so they are known by then."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._produced: int | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then [B] of each step or [1, accepted + 1] of each round."""
        if self._produced is None:
            self._produced = 0
            return
        if self._produced == 0:
            self._recorder.phase(Phase.DECODE)
        self._produced += value.shape[1] if value.ndim == 2 else 1
        self._recorder.tokens(self._produced)

    def end(self) -> None:
        pass
