"""Writes events as text, the same on a terminal and in a log."""

from orchestrator.names import Names
from orchestrator.predict.versions import other_libraries
from orchestrator.watch import Tick
from workers.attempt import Attempt, Device
from workers.cell import Cell
from workers.units import duration_text, round_size_text, size_text


def one_line(text: str) -> str:
    """`text` without line ends, and with `?` for what would steer a terminal: names and errors may hold anything."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def device_words(device: Device) -> str:
    words = f"{device.kind} {size_text(device.total_bytes)}"
    if (others := other_libraries(device)) is not None:
        words = f"{words}; {others}: they may be off by some per cent"
    if device.allocators_left_out is None:
        return words
    return f"{words}; cells run without {device.allocators_left_out} (LD_PRELOAD), with glibc's malloc"


def cell_words(cell: Cell, names: Names, *, mode: bool = True) -> str:
    """Of one line; without its `mode` where that stands beside it."""
    model = names.model(cell.model.target, cell.model.dtype)
    if mode:
        model = f"{model} {cell.mode}"
    engine = "" if cell.engine == "eager" else f" {cell.engine}"
    budget = "" if cell.budget is None else f" in {round_size_text(cell.budget)}"
    devices = "" if cell.devices == 1 else f" on {cell.devices} devices"
    return f"{model}{engine} {tokens_words(cell)}{budget}{devices} #{cell.repeat}"


def tokens_words(cell: Cell) -> str:
    """Prompt + new tokens, sequences, and whether it is a probe: `1648+16 x4 probe`."""
    extra = f" x{cell.batch_size}" if cell.batch_size > 1 else ""
    purpose = " probe" if cell.purpose == "probe" else ""
    tokens = (
        f"{cell.length}" if cell.workload_spec.prompt_is_length else f"{cell.prompt_tokens}+{cell.length}"
    )
    if cell.retrieve is not None:
        tokens = f"{cell.retrieve.task} {tokens}"
    return f"{tokens}{extra}{purpose}"


def attempt_words(attempt: Attempt, names: Names) -> str:
    measured = attempt.measured
    parts = [cell_words(attempt.cell, names), str(attempt.outcome), duration_text(attempt.duration_s)]
    if measured.tokens_per_s is not None:
        parts.append(f"{measured.tokens_per_s:.1f} tok/s")
    if attempt.peak_device_bytes is not None:
        parts.append(f"peak {size_text(attempt.peak_device_bytes)}")
    failure = attempt.failure
    if failure is not None and failure.oom_token_index is not None:
        parts.append(f"at token {failure.oom_token_index}")
    elif failure is not None and not attempt.outcome.is_device_oom:
        parts.append(" ".join(failure.error_message.split())[:160])
    return " · ".join(parts)


def totals(tick: Tick) -> str:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tick.outcomes.items()))
    searching = f", {tick.searching} searches open" if tick.searching else ""
    eta = f", about {duration_text(tick.eta_s)} left" if tick.eta_s is not None else ""
    return (
        f"{tick.done} run{'' if tick.done == 1 else 's'} done{f' ({outcomes})' if outcomes else ''}, {tick.running} running on {tick.devices} "
        f"device{'' if tick.devices == 1 else 's'}, {tick.queued} queued{searching}{eta}"
    )
