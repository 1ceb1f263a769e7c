"""A recorder that keeps what an engine tells it."""

from collections.abc import Callable

from workers.attempt import Phase


class Heard:
    """`log`: phases and counts in the order told. `times_s`: of each token. `kv_bytes`: the cache at each count."""

    def __init__(self) -> None:
        self.log: list[Phase | int] = []
        self.times_s: list[float] = []
        self.kv_bytes: list[int] = []
        self._kv_cache_bytes: Callable[[], int] | None = None
        self.read: list[int] = []

    def phase(self, phase: Phase) -> None:
        self.log.append(phase)

    def tokens(self, produced: int) -> None:
        self.log.append(produced)
        if self._kv_cache_bytes is not None:
            self.kv_bytes.append(self._kv_cache_bytes())

    def prompt(self, read: int) -> None:
        self.read.append(read)

    def token_times(self, first_index: int, times_s: list[float]) -> None:
        assert first_index == len(self.times_s)
        self.times_s += times_s

    def count_cache_with(self, kv_cache_bytes: Callable[[], int]) -> None:
        self._kv_cache_bytes = kv_cache_bytes

    @property
    def counts(self) -> list[int]:
        return [entry for entry in self.log if not isinstance(entry, Phase)]

    @property
    def phases(self) -> list[Phase]:
        return [entry for entry in self.log if isinstance(entry, Phase)]
