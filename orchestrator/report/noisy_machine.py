"""Says that cells ran on a noisy machine, why, and what to do about it."""

from collections import Counter

import polars as pl

from orchestrator.report import formats
from orchestrator.report.speed_claims import ENOUGH
from orchestrator.tables.speed_rows import measures_speed

#: The beginnings of `noise_reasons` -> what a reader can do.
_REMEDIES = {
    "waited": "run fewer cells at a time (--slots)",
    "others": "stop what else computes there",
    "stolen": "take a machine whose cores are not shared",
    "throttled": "cool the card, or set a clock that it holds",
    "copy": "repeat on a quiet machine",
    "matmul": "repeat on a quiet machine",
    "sm_clock": "set a clock that the card holds",
}


def noisy_machine(attempts: pl.DataFrame) -> str | None:
    """One text for a reader who has read no number yet. None where no measured cell is marked."""
    measured = attempts.filter(
        (pl.col("final") & (pl.col("purpose") == "measure") & measures_speed())
        & (pl.col("noisy").is_not_null() & pl.col("tokens_per_s").is_not_null())
    )
    noisy = measured.filter("noisy")
    if noisy.is_empty():
        return None
    of_cells = [{words.split()[0] for words in all_.split("; ")} for all_ in noisy["noise_reasons"]]
    kinds = Counter(kind for found in of_cells for kind in found)
    reasons = [f"{_words(kind)} in {count}" for kind, count in kinds.most_common()]
    # Who waited only while others computed waited for them: fewer cells of ours would not help.
    ours = any("waited" in found and "others" not in found for found in of_cells)
    remedies = dict.fromkeys(_REMEDIES[kind] for kind, _ in kinds.most_common() if ours or kind != "waited")
    if measured["repeat"].max() in (0, 1):
        remedies[f"set “repeats: {ENOUGH}” or “repeats: auto”"] = None
    return (
        f"Measured on a noisy machine: {noisy.height:,} of {formats.plural(measured.height, 'cell')} "
        f"({formats.listing(reasons)}). Their intervals are wider, and a difference within them is not called one. Memory and "
        f"boundaries are not touched by it. To do: {'; '.join(remedies)}."
    )


def _words(kind: str) -> str:
    return {
        "waited": "the cell waited for a core",
        "others": "others used cores",
        "stolen": "the hypervisor stole time",
        "throttled": "the card was throttled",
        "copy": "memory was faster or slower than usual",
        "matmul": "the processor was faster or slower than usual",
        "sm_clock": "the card's clock was another one",
    }[kind]
