"""What an engine offers to a child process: a session, which runs one cell of one loaded model.

An engine is a module with a function `open_session(cell, target, draft) -> Session` (`OpenSession`). The function raises
`ModeUnsupported` where the architecture lacks what the mode needs. Memory errors pass through.
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
    """The architecture lacks what the mode needs. The message names what is missing."""


class Recorder(Protocol):
    """Takes the progress of a running session. Its calls are cheap: it decides itself what it keeps."""

    def phase(self, phase: Phase) -> None:
        """Note that the run enters `phase`. DECODE begins once the first new token is known."""

    def prompt(self, read: int) -> None:
        """Note that `read` tokens of the prompt have been read, in passes that fitted."""

    def tokens(self, produced: int) -> None:
        """Note that `produced` new tokens of each sequence are known to the host."""

    def token_times(self, first_index: int, times_s: "list[float]") -> None:
        """Note the times of tokens `first_index`, `first_index + 1`, ...: seconds since the end of prefill, measured on the
        device. An engine that times on the host does not call it.
        """

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        """Note the function that counts the bytes of the live cache's tensors."""


class Unmeasured:
    """A `Recorder` of a run that is not measured. It remembers how far the run came."""

    def __init__(self) -> None:
        self._phase, self._produced = Phase.PREPARE, 0
        self._read: int | None = None
        self._kv_cache_bytes: Callable[[], int] | None = None

    def phase(self, phase: Phase) -> None:
        self._phase = phase

    def prompt(self, read: int) -> None:
        self._read = read

    def tokens(self, produced: int) -> None:
        self._produced = produced

    def token_times(self, first_index: int, times_s: "list[float]") -> None: ...

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._kv_cache_bytes = kv_cache_bytes

    def tell(self, recorder: Recorder) -> None:
        """Report to `recorder` how far the run came."""
        if self._kv_cache_bytes is not None:
            recorder.count_cache_with(self._kv_cache_bytes)
        recorder.phase(self._phase)
        if self._read is not None:
            recorder.prompt(self._read)
        recorder.tokens(self._produced)


@contextmanager
def telling_failures(recorder: Recorder) -> Iterator[Unmeasured]:
    """Within the context, an oracle's output is recorded. Where that fails, report to `recorder` how far it came.

    It is the output of the run itself, which holds more memory and would come no further.
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
    """One cell of one loaded model."""

    def in_effect(self) -> InEffect:
        """Return the settings as the live objects have them."""

    def warm_up(self, prompt_BT: "torch.Tensor") -> None:
        """Do everything that is paid once (captures, compilation, set-up at first call), at the cell's own shape.

        A memory error passes through, and the session stays usable: the run then meets the error and reports how far
        it came.
        """

    def generate(self, prompt_BT: "torch.Tensor", new_tokens: int, recorder: Recorder) -> Generated:
        """Generate `new_tokens` tokens, greedily. The end of text is suppressed and noted.

        `prompt_BT`: int64 [batch, prompt] on the host.
        """

    def keep(self, prefix_T: "torch.Tensor") -> None:
        """Read a text that later prompts begin with, so that they need not read it again. `prefix_T`: int64 on the host.

        It changes no answer. A session that cannot share a cache reads every prompt whole.
        """

    def score(self, ids_T: "torch.Tensor", recorder: Recorder) -> list[ScoreBucket]:
        """Score token t + 1 of a given text after reading tokens 0 .. t under the cache policy. `ids_T`: int64."""

    def logits(self, ids_T: "torch.Tensor") -> "torch.Tensor":
        """Return [T, V] float32 on the host: row t after reading token t, one token at a time."""


OpenSession = Callable[["Cell", "LoadedModel", "LoadedModel | None"], Session]
