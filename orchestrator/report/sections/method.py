"""How it was measured: what a number depends on, and what was achieved."""

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from orchestrator.journal.folder import RecordedRun
from orchestrator.journal.manifest import Manifest
from orchestrator.predict.versions import other_libraries
from orchestrator.report import formats
from orchestrator.report.document import Block, Bullets, Code, Folded, Section, Span, Table, Verbatim
from orchestrator.report.noisy_machine import noisy_machine
from orchestrator.spec import SweepSpec, dump_spec
from orchestrator.status import count_cells
from orchestrator.tables.write import Tables


def method(run: RecordedRun, tables: Tables) -> Section:
    items: list[Sequence[Span]] = []
    if run.manifest is not None:
        items += _software(run.manifest)
    items += _meters(tables.attempts)
    if tables.view.duplicates.height:
        items.append([
            f"{formats.plural(tables.view.duplicates.height, 'result')} came twice (a lost node's, late): the first counts, "
            "the others are in ", Code("tables/duplicates.parquet"), ".",
        ])  # fmt: skip
    blocks: list[Block] = [Bullets(items)] if items else []
    if run.manifest is not None and run.manifest.devices:
        blocks.append(_devices(run.manifest))
    blocks += _in_effect(tables.attempts)
    if run.spec is not None:
        blocks.append(Folded("The sweep file, resolved", [Verbatim(dump_spec(run.spec))]))
    return Section("How it was measured", blocks)


def warnings(run: RecordedRun, tables: Tables) -> list[str]:
    """What a reader must know first."""
    found = [text] if (text := noisy_machine(tables.attempts)) is not None else []
    random = sorted({model for model in tables.attempts["model"] if model.startswith("random:")})
    if random:
        found.append(
            f"Random weights: {formats.listing(random)}. Memory and speed are real; text and acceptance mean nothing."
        )
    injected = tables.attempts["acceptance_injected"].drop_nulls()
    if injected.len():
        found.append(
            "Some speculative runs force their acceptance with an oracle draft (“injected”): a what-if."
        )
    narrow = sorted(set(tables.attempts.filter(pl.col("ids_mapped") > 0)["model"]))
    if narrow:
        found.append(
            f"The vocabulary of {formats.listing(narrow)} is smaller than the stand-in tokenizer's: ids beyond it were taken "
            "modulo its size."
        )
    devices = run.manifest.devices if run.manifest is not None else ()
    for words in sorted({words for device in devices if (words := other_libraries(device)) is not None}):
        found.append(
            f"{words[0].upper()}{words[1:]}: predicted lengths and peaks may be off by some per cent."
        )
    if run.manifest is not None and (others := run.manifest.other_sessions()):
        found.append(f"Not all sessions ran with the same code and packages. {' '.join(others)}")
    left_out = tables.attempts["left_out"].drop_nulls().unique().sort()
    if left_out.len():
        found.append(
            f"What models or files said and no table can hold is null: {formats.listing(left_out.to_list()[:5])}."
        )
    if run.journal.set_aside:
        names = formats.listing([part.name for part in run.journal.set_aside[:5]])
        found.append(
            f"{formats.plural(len(run.journal.set_aside), 'journal part')} could not be trusted and left out: {names}."
        )
    return found


def progress(run: RecordedRun, tables: Tables) -> str:
    """One line: the state, and how many cells have an outcome, counted as `oomline status` counts them."""
    counts = count_cells(run.spec, tables.view.history())
    if run.manifest is None:
        return f"{formats.plural(counts.completed, 'cell')} on record."
    last = run.manifest.sessions[-1] if run.manifest.sessions else None
    state = last.state if last else "unknown"
    of = (
        f"{counts.completed:,} of {counts.planned:,} cells"
        if counts.planned is not None
        else formats.plural(counts.completed, "cell")
    )
    note = f" ({last.note})" if last and last.note else ""
    return f"{state}: {of}{note}."


def _software(manifest: Manifest) -> list[Sequence[Span]]:
    environment = manifest.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    allocator = (
        ", ".join(f"{name}={value}" for name, value in environment.allocator.items()) or "torch's defaults"
    )
    started = [
        datetime.fromtimestamp(s.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC") for s in manifest.sessions
    ]
    sources: list[Span] = [" (sources ", Code(environment.sources), ")"] if environment.sources else []
    return [
        ["Code ", Code(environment.code_revision), *sources, f"; Python {environment.python}, {versions}; {environment.platform}."],
        ["Allocator: ", Code(allocator), " (it moves the boundary)."],
        [f"Run {manifest.run_id}, {formats.plural(len(started), 'session')}: {formats.listing(started[-5:])}."] if started else ["No session."],
        *([text] for text in manifest.other_sessions()),
    ]  # fmt: skip


def _meters(attempts: pl.DataFrame) -> list[Sequence[Span]]:
    ran = attempts.filter(pl.col("sample_interval_p50_s").is_not_null())
    items: list[Sequence[Span]] = []
    if ran.height:
        p50, p99 = ran["sample_interval_p50_s"].median(), ran["sample_interval_p99_s"].median()
        items.append([
            f"Memory was sampled every {formats.duration(_float(p50))} (achieved median; 99th percentile {formats.duration(_float(p99))}); "
            "every change of value is kept. On a GPU the meter is NVML by UUID, above the idle device; on a CPU it is the "
            "growth of the process's data segment, which is also what the budget limits."
        ])  # fmt: skip
    context = attempts["context_bytes"].drop_nulls()
    if context.len():
        items.append([f"An idle context took {formats.size(_float(context.median()))} before any weight."])
    gaps = attempts["first_model_call_s"].drop_nulls()
    if gaps.len():
        items.append(
            [
                f"From a cell's arrival to its model's first call, load included: "
                f"{formats.duration(_float(gaps.median()))} (median)."
            ]
        )
    items.append([
        "Every attempt ran in a fresh process. Measured cells are warmed up at their own shape; boundary probes are not, "
        "and their speed enters no table. Lengths are forced (EOS suppressed) and verified. Speeds count tokens over the "
        "decode phase. Intervals: Student's t at 95 % over the repeats; none for a single one."
    ])  # fmt: skip
    return items


def _devices(manifest: Manifest) -> Table:
    rows = [
        [
            device.kind, device.uuid, device.node, formats.size(device.total_bytes), formats.size(device.reserve_bytes or None),
            device.driver_version or formats.NOTHING, "yes" if device.per_process_memory_visible else "no",
        ]
        for device in manifest.devices
    ]  # fmt: skip
    columns = ["device", "uuid", "node", "memory", "driver's reserve", "driver", "per-process memory visible"]
    return Table(columns, rows, "Devices", frozenset({"memory", "driver's reserve"}))


def _in_effect(attempts: pl.DataFrame) -> list[Block]:
    columns = {
        "mode": "mode", "engine": "engine", "cache_class": "cache", "effective_attn_implementation": "attention",
        "effective_dtype": "dtype", "effective_sinks": "sinks", "effective_window": "window", "effective_gamma": "gamma",
    }  # fmt: skip
    rows = (
        attempts.filter(pl.col("cache_class").is_not_null())
        .select(*columns)
        .unique()
        .sort(*columns, nulls_last=True)
    )
    if rows.is_empty():
        return []
    lines = [[formats.NOTHING if value is None else str(value) for value in row] for row in rows.iter_rows()]
    return [Table(list(columns.values()), lines, "In effect, read back from the live objects")]


def _float(value: object) -> float:
    return float(value)  # type: ignore[arg-type]


def title(spec: SweepSpec | None, manifest: Manifest | None) -> str:
    return spec.name if spec is not None else manifest.name if manifest is not None else "a run"
