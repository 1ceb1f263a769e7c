"""`oomline fit`, for a person and for a script."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.fit.answer import Fit
from orchestrator.fit.questions import NEW_TOKENS, Answers
from workers.libraries import library_versions
from workers.units import GiB

#: Of the peak: weights, caches, what a pass needs, what the allocator holds beyond that, libraries and the context.
_PARTS = ("weights", "kv_cache", "activations", "fragmentation", "libraries")


def fit_as_json(found: Answers) -> dict[str, Any]:
    model = found.spec.models[0]
    return {
        "model": model.target,
        "draft": model.draft,
        "dtype": model.dtype,
        "engine": found.spec.engines[0],
        "batch_size": found.spec.batch_sizes[0],
        "prefill_chunk": found.spec.prefill_chunk,
        "tokens": found.tokens,
        "weights_bytes": found.weights_bytes,
        "bytes_per_token": None if found.law is None else found.law.bytes_per_token,
        "constant_bytes": None if found.law is None else found.law.constant_bytes,
        "max_positions": found.max_positions,
        "notes": list(found.notes),
        "fits": [_row(each) for each in found.fits],
    }


def _row(each: Fit) -> dict[str, Any]:
    cell = each.question.cell
    return {
        "card": each.question.card.name,
        "devices": cell.devices,
        "card_bytes": each.question.card.total_bytes,
        "mode": cell.mode,
        "kv_dtype": cell.kv_dtype,
        "allocator": cell.allocator,
        "fits": each.fits,
        "longest_length": each.longest_length,
        "constant_memory": each.is_constant,
        "peak_bytes": each.peak_bytes,
        "parts": each.parts,
        "predicted_by": each.predicted_by,
        "change": None if each.change is None else {"words": each.change.words, "costs": each.change.costs},
        "refused": each.refused,
    }


def print_fit(found: Answers) -> None:
    console = Console()
    for line in sentences(found):
        console.print(Text(line))
    console.print(_table(found))
    several = len({fit.question.cell.devices for fit in found.fits}) > 1
    refused = dict.fromkeys(
        (fit.question.mode + (f", {fit.question.cell.devices} devices" if several else ""), fit.refused)
        for fit in found.fits
        if fit.refused
    )
    for mode, reason in refused:
        console.print(Text.assemble((mode, "yellow"), f": no answer: {reason}"))


def sentences(found: Answers) -> list[str]:
    """The answer first, then what it is of."""
    batch = found.spec.batch_sizes[0]
    of = f" x {batch} sequences" if batch > 1 else ""
    lines = []
    for each in found.fits:
        if each.refused is None:
            lines.append(f"{each.question.cards}, {each.question.mode}: {_sentence(each, of)}")
    chunk = found.spec.prefill_chunk
    read = f"in passes of {chunk:,} tokens" if chunk else "in one pass"
    lines.append(f"A text: a prompt read {read}, then {NEW_TOKENS} new tokens.")
    if any(each.question.cell.devices > 1 for each in found.fits):
        lines.append(
            "Of several cards: what each of them holds; the longest text is that of the first to run out."
        )
    if any(each.predicted_by == "rehearsal" for each in found.fits):
        lines.append(f"Predicted for runs with {library_versions()}.")
    lines += [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    longest = max((each.longest_length or 0 for each in found.fits), default=0)
    if found.max_positions and max(longest, found.tokens or 0) > found.max_positions:
        lines.append(
            f"Trained on {found.max_positions:,} positions: longer texts run, but what is written there may make no sense."
        )
    return lines


def _sentence(each: Fit, of: str) -> str:
    if each.longest_length == 0:
        return "does not load" + (f"; {each.change.words} would do" if each.change else "")
    far = "no end" if each.longest_length is None else f"{each.longest_length:,} tokens at most"
    if each.fits is None:
        return far + of
    if each.fits:
        return f"{each.question.tokens:,} tokens{of} fit ({far})"
    instead = ""
    if each.change is not None:
        costs = f", at the cost of {each.change.costs}" if each.change.costs else ""
        instead = f"; {each.change.words} would do{costs}"
    return f"{each.question.tokens:,} tokens{of} do not fit ({far}){instead}"


def _table(found: Answers) -> Table:
    """Sizes in GiB, of the text that was asked for, else of the longest."""
    title = f"{found.spec.models[0].target}, GiB at the peak"
    table = Table(title_justify="left", title=Text(title, style="italic"))
    for name in ("card", "mode"):
        table.add_column(name)
    for name in ("peak", "weights", "KV", "passes", "gaps", "rest"):
        table.add_column(name, justify="right")
    for each in found.fits:
        if each.refused is None:
            sizes = (each.peak_bytes or 0, *(each.parts[part] for part in _PARTS))
            card, mode = each.question.cards, each.question.mode
            table.add_row(card, mode, *(f"{size / GiB:.2f}" for size in sizes))
    return table
