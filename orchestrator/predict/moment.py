"""The tensors that are alive at one moment of a run, by what they are for."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Live:
    """`count` tensors of `size` bytes. `what`: for a person, e.g. "logits, float32"."""

    what: str
    size: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Moment:
    """`kv`: the caches themselves. `work`: everything else beside the weights."""

    name: str
    kv: tuple[Live, ...]
    work: tuple[Live, ...] = field(default=())


def total(tensors: tuple[Live, ...]) -> int:
    return sum(live.size * live.count for live in tensors)
