"""The modes: a cache policy with a decoder. Free of torch; read by plan, predictions, engines and report alike.

A policy and a decoder are values that know what others need of them: their names are compared nowhere. `policies` and
`decoders` list them; every pair that fits is a mode.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workers.modes.decoders import DECODERS, PLAIN, Decoder
from workers.modes.installed import BrokenEntryPoint, Registry
from workers.modes.parameters import Retrieve, Speculation, Streaming
from workers.modes.policies import FULL, POLICIES
from workers.modes.policy import CachePolicy, Context, Dash, Layout
from workers.modes.workloads import (
    GENERATE,
    RETRIEVE,
    SCORE,
    WORKLOADS,
    RetrievalAnswer,
    ScoreBucket,
    Workload,
)

__all__ = [
    "BASELINE",
    "DECODERS",
    "GENERATE",
    "MODES",
    "PLAIN",
    "POLICIES",
    "RETRIEVE",
    "SCORE",
    "WORKLOADS",
    "BrokenEntryPoint",
    "CachePolicy",
    "Context",
    "Dash",
    "Decoder",
    "Layout",
    "Mode",
    "RetrievalAnswer",
    "Retrieve",
    "ScoreBucket",
    "Speculation",
    "Streaming",
    "Workload",
    "implementations",
    "mode_rank",
    "modes_with",
]


@dataclass(frozen=True, slots=True)
class Mode:
    """One cache policy with one decoder."""

    policy: CachePolicy
    decoder: Decoder

    @property
    def name(self) -> str:
        return self.policy.mode + self.decoder.suffix

    @property
    def engines(self) -> frozenset[str]:
        """The engines that have both."""
        return frozenset(self.policy.engines) & frozenset(self.decoder.engines)

    @property
    def workloads(self) -> frozenset[str]:
        """A policy without a cache decodes nothing; a decoder does not change how a given text is read."""
        return frozenset(
            name
            for name, workload in WORKLOADS.items()
            if (self.policy.decodes if workload.decodes else self.decoder is PLAIN)
        )

    @property
    def fits(self) -> bool:
        """Whether anything can run it: an engine has both, for a workload, and drafts can be taken back."""
        can_verify = self.policy.takes_back or not self.decoder.verifies
        return can_verify and bool(self.engines) and bool(self.workloads)

    @property
    def plain(self) -> str:
        """The name of its twin: the same policy with the plain decoder."""
        return Mode(self.policy, PLAIN).name


def modes_of(policies: Iterable[CachePolicy], decoders: Iterable[Decoder]) -> dict[str, Mode]:
    """Every pair that fits by its name, in the policies' order."""
    decoders = list(decoders)
    modes = [Mode(policy, decoder) for policy in policies for decoder in decoders]
    return {mode.name: mode for mode in modes if mode.fits}


MODES: Mapping[str, Mode] = Registry(lambda: modes_of(POLICIES.values(), DECODERS.values()))
#: The mode that others are compared with: it sees everything and decodes plainly.
BASELINE = Mode(FULL, PLAIN).name
_RANKS: Mapping[str, int] = Registry(lambda: {name: rank for rank, name in enumerate(MODES)})


def modes_with(workload: Workload) -> list[str]:
    """The names of the modes that have a workload."""
    return [name for name, mode in MODES.items() if workload.name in mode.workloads]


def mode_rank(name: str) -> int:
    """The place of a mode in tables, legends and sentences."""
    return _RANKS[name]


def implementations() -> list[str]:
    """The modules that run the policies, the decoders and the workloads."""
    paths = [workload.run for workload in WORKLOADS.values()]
    for engines in (*(p.engines for p in POLICIES.values()), *(d.engines for d in DECODERS.values())):
        paths += engines.values()
    return sorted({path.partition(":")[0] for path in paths})
