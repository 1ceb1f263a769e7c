"""What models are called where there is no room for a path: as short as can be, while two that differ are told apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.cell import ModelRef

_RANDOM = "random:"


def short(target: str) -> str:
    """The last part of a hub id or a path; that weights are random is said elsewhere, loudly."""
    return _candidates(target)[0]


def short_names(targets: Iterable[str]) -> dict[str, str]:
    """Each target's last part, and as many parts before it as it takes to tell it from the others."""
    candidates = {target: _candidates(target) for target in targets}
    length = dict.fromkeys(candidates, 0)
    while True:
        alike: dict[str, list[str]] = {}
        for target, found in candidates.items():
            alike.setdefault(found[length[target]], []).append(target)
        longer = [
            target
            for group in alike.values()
            if len(group) > 1
            for target in group
            if length[target] + 1 < len(candidates[target])
        ]
        if not longer:
            return {target: found[length[target]] for target, found in candidates.items()}
        for target in longer:
            length[target] += 1


def _candidates(target: str) -> list[str]:
    """Shortest first; the last is the target as it was written, which no other one is."""
    parts = target.removeprefix(_RANDOM).rstrip("/").split("/")
    return [*("/".join(parts[-count:]) for count in range(1, len(parts) + 1)), target]


@dataclass(frozen=True, slots=True)
class Names:
    """Of the models that one report, or one sweep, is about. `several`: targets that occur in several dtypes."""

    short: dict[str, str]
    several: frozenset[str]

    @classmethod
    def of(cls, models: Iterable[tuple[str, str, str | None]]) -> "Names":
        """`models`: target, dtype and draft of each."""
        known = set(models)
        targets = {target for target, _, _ in known}
        dtypes = {(target, dtype) for target, dtype, _ in known}
        several = {target for target in targets if sum(name == target for name, _ in dtypes) > 1}
        drafts = {draft for _, _, draft in known if draft is not None}
        return cls(short_names(targets | drafts), frozenset(several))

    @classmethod
    def of_refs(cls, models: Iterable[ModelRef]) -> "Names":
        return cls.of((model.target, model.dtype, model.draft) for model in models)

    def target(self, target: str) -> str:
        """A target or a draft."""
        return self.short.get(target) or short(target)

    def model(self, target: str, dtype: str) -> str:
        return f"{self.target(target)} ({dtype})" if target in self.several else self.target(target)

    def row(self, row: Mapping[str, Any]) -> str:
        """Of a table's row with the columns `model` and `dtype`."""
        return self.model(row["model"], row["dtype"])
