"""The seam between a child process and an engine: a session runs one cell of one loaded model.

An engine is a function `open_session(cell, models) -> Session`. It raises `ModeUnsupported` when the architecture
lacks what the mode needs; memory errors pass through untouched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from workers.attempt import InEffect, Phase
from workers.modes import ScoreBucket

if TYPE_CHECKING:
    import torch

    from workers.cell import Cell
    from workers.models.load import LoadedModel


class ModeUnsupported(Exception):
    """This architecture lacks what this mode needs; the message names what is missing."""


class Recorder(Protocol):
    """Where a session reports to while it runs. Calls are cheap: the recorder decides what to keep."""

    def phase(self, phase: Phase) -> None:
        """The run enters `phase`. DECODE begins once the first new token is known."""

    def tokens(self, produced: int) -> None:
        """`produced` new tokens (per sequence) are now known to the host."""

    def token_times(self, first_index: int, times_s: "list[float]") -> None:
        """Engines that time on the device: seconds since prefill ended for tokens `first_index`, `first_index + 1`, ..."""

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        """How to count the bytes of the live cache's tensors."""


class Unmeasured:
    """A `Recorder` of a run that nobody measures; remembers how far it came."""

    def __init__(self) -> None:
        self._phase, self._produced = Phase.PREPARE, 0
        self._kv_cache_bytes: Callable[[], int] | None = None

    def phase(self, phase: Phase) -> None:
        self._phase = phase

    def tokens(self, produced: int) -> None:
        self._produced = produced

    def token_times(self, first_index: int, times_s: "list[float]") -> None: ...

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._kv_cache_bytes = kv_cache_bytes

    def tell(self, recorder: Recorder) -> None:
        if self._kv_cache_bytes is not None:
            recorder.count_cache_with(self._kv_cache_bytes)
        recorder.phase(self._phase)
        recorder.tokens(self._produced)


@contextmanager
def telling_failures(recorder: Recorder) -> Iterator[Unmeasured]:
    """While an oracle's output is recorded. It is the run's own output: where it fails, `recorder` hears how far it
    came, as the run itself, which holds more, would come no further.
    """
    heard = Unmeasured()
    try:
        yield heard
    except Exception:
        heard.tell(recorder)
        raise


class Generated(NamedTuple):
    """`ids_BT`: the new tokens, [batch, produced], on the host."""

    ids_BT: "torch.Tensor"
    eos_at: int | None
    rounds: int | None = None  # target forwards of the decode loop, when speculative
    drafted: int | None = None
    accepted: int | None = None
    draft_step_s: float | None = None
    verify_step_s: float | None = None
    prompt_is_a_round: bool = (
        False  # the pass over the prompt verifies a draft too (transformers' assisted decoding)
    )


class Session(Protocol):
    def in_effect(self) -> InEffect:
        """Read back from the live objects."""

    def warm_up(self, prompt_BT: "torch.Tensor") -> None:
        """Everything that is paid once (capture, compile, first-call set-up), at the cell's own shape.

        A memory error passes through, the session still usable: the run itself fails there too and tells how far it
        came.
        """

    def generate(self, prompt_BT: "torch.Tensor", new_tokens: int, recorder: Recorder) -> Generated:
        """Greedy, forced length: EOS is suppressed and noted. `prompt_BT`: int64 [batch, prompt] on the host."""

    def score(self, ids_T: "torch.Tensor", recorder: Recorder) -> list[ScoreBucket]:
        """Teacher-forced: token t + 1 is scored after reading tokens 0..t under the cache policy."""

    def logits(self, ids_T: "torch.Tensor") -> "torch.Tensor":
        """[T, V] float32 on the host; row t after reading token t, one token at a time."""


OpenSession = Callable[["Cell", "LoadedModel", "LoadedModel | None"], Session]
