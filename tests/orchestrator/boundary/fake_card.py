"""A device that exists in numbers only, and a search that is driven to its end on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.boundary.search import Bracket, Probe, Search

#: Whether a run passed, and its account: `Search.observe`.
Told = tuple[bool, int | None, int | None]


@dataclass
class FakeCard:
    """Passes values up to `threshold`. `tells`: a failed run names the last value it passed; with a `stride` it
    moves in chunks, and knows only in which of them it failed."""

    threshold: int
    tells: bool = True
    stride: int | None = None
    runs: list[Probe] = field(default_factory=list)

    def run(self, probe: Probe) -> Told:
        self.runs.append(probe)
        if probe.value <= self.threshold:
            return True, None, None
        if self.stride is None:
            return False, self.threshold if self.tells else None, None
        whole = self.threshold // self.stride * self.stride
        return False, whole, whole + self.stride


def drive(
    search: Search,
    run: Callable[[Probe], Told],
    k: int = 1,
    most: int = 10_000,
) -> None:
    """To its end, with `k` devices whose runs come back last in, first out, to test the order."""
    pending: list[Probe] = []
    for _ in range(most):
        if search.done:
            return
        handed = search.next_probes(k - len(pending))
        assert len(handed) <= k - len(pending)
        assert len(set(handed)) == len(handed)
        assert not set(handed) & set(pending)
        pending += handed
        assert pending, "not done, nothing pending, nothing to do"
        probe = pending.pop()
        search.observe(probe, *run(probe))
    raise AssertionError(f"no end after {most} probes")


def build(
    threshold: int, prediction: int | None, resolution: int, confirm: int, max_value: int = 200_000
) -> Search:
    return Search(
        predicted=prediction,
        floor=max((prediction or 0) // 16, resolution),
        resolution=resolution,
        max_value=max_value,
        confirm=confirm,
    )


def assert_brackets(bracket: Bracket, threshold: int, resolution: int, max_value: int) -> None:
    if threshold >= max_value:
        assert bracket.censored
        assert bracket.confirmed_ok >= 1
        assert bracket.last_ok == max_value
        assert bracket.first_oom is None
        return
    low = bracket.last_ok or 0
    assert bracket.first_oom is not None
    assert not bracket.censored
    assert low <= threshold < bracket.first_oom
    assert bracket.first_oom - low <= resolution
    assert bracket.non_monotone == ()
