"""The parameters of policies, decoders and workloads, as a cell carries them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """The parameters of a policy that keeps a fixed number of tokens: `sinks` first ones and `window` last ones."""

    sinks: int
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """`gamma` drafted tokens a round; `acceptance` injects an oracle draft instead of the decoder's own proposals.

    `acceptance`: None (the decoder proposes) | a per-token rate | per-position rates, `gamma` of them.
    A mean number of tokens per round is turned into a rate where the sweep file is read.
    """

    gamma: int
    acceptance: float | tuple[float, ...] | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """For each draft position, the chance that the oracle is right there. Only where `acceptance` is given."""
        assert self.acceptance is not None
        return self.acceptance if isinstance(self.acceptance, tuple) else (self.acceptance,) * self.gamma


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieve:
    """One task of `workers.retrieval.tasks`: `samples` questions at each of `depths` places, evenly from the beginning to the
    end of the text. A task without a place asks `samples` questions."""

    task: str
    depths: int
    samples: int
