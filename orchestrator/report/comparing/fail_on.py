"""`--fail-on boundary:2%,speed:5%,memory:1%`: where the second run is worse than the first by more than that."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.report.comparing.comparison import Comparison
from orchestrator.report.comparing.differences import Quantity
from orchestrator.spec_error import SpecError

_LIMIT = re.compile(r"(?P<quantity>[a-z]+):(?P<percent>\d+(\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class Worse:
    """`change`: of the run `label`, 0.05 = 5 % more."""

    quantity: Quantity
    what: str
    label: str
    change: float

    @property
    def words(self) -> str:
        return f"{self.quantity} of {self.what}: {self.change * 100:+.1f} % in {self.label}"


def parse_limits(text: str) -> dict[Quantity, float]:
    """Read `boundary:2%,speed:5%` as shares. Raises `SpecError`."""
    limits: dict[Quantity, float] = {}
    for part in text.split(","):
        found = _LIMIT.fullmatch(part.strip())
        if found is None or found["quantity"] not in [*Quantity]:
            raise SpecError(
                f"--fail-on {text}: {part.strip()!r} is not QUANTITY:PERCENT%, such as boundary:2%,speed:5%,memory:1%"
            )
        if found["quantity"] in limits:
            raise SpecError(f"--fail-on {text}: {found['quantity']} has two limits; give one")
        limits[Quantity(found["quantity"])] = float(found["percent"]) / 100
    return limits


def worse_than(found: Comparison, limits: Mapping[Quantity, float]) -> list[Worse]:
    """What is worse than in the first run that has it by more than the limit, and beyond the noise.

    Kinds of device of one run are not held against each other. Raises `SpecError` where the runs have nothing in common
    that a limit is for: a check of nothing must not pass.
    """
    for quantity in limits:
        if not any(row.quantity is quantity for row in found.rows):
            raise SpecError(
                f"--fail-on {quantity}: the runs have no {quantity} in common, so nothing is checked"
            )
    folders = {side.label: side.folder for side in found.sides}
    worse: list[Worse] = []
    for row in found.rows:
        limit = limits.get(row.quantity)
        for label, difference in row.differences.items():
            if limit is None or not difference.differs or difference.change is None:
                continue
            if folders[label] == folders[row.against[label]]:
                continue
            loss = -difference.change if row.quantity.is_better_larger else difference.change
            if loss > limit:
                worse.append(Worse(row.quantity, row.what, label, difference.change))
    return worse
