"""Which card holds how long a context in which mode, and how sure that is."""

from collections.abc import Sequence

from orchestrator import axes
from orchestrator.axes import Role
from orchestrator.report import formats
from orchestrator.report.document import Block, Folded, Paragraph, Section, Table
from orchestrator.report.pictures.boundaries import boundary_by_card, frontiers
from orchestrator.report.setting import Setting, Variant, mode_words, tell_apart, variant_of
from orchestrator.tables.boundary_rows import BoundaryRow

_PHASES = {
    "decode": "new tokens",
    "decode_after_prefill": "new tokens after a long prompt",
    "prefill": "prompt tokens in one pass",
    "prefill_chunked": "prompt tokens in chunks",
}
_NO_END = 1_000_000


def card_tables(settings: Sequence[Setting]) -> list[Table]:
    """One table per model, kind of device and phase: modes down, budgets across."""
    groups: dict[tuple[str, str, str, str], list[tuple[Setting, BoundaryRow]]] = {}
    for setting in settings:
        for row in setting.boundaries:
            if setting.main.asks(row):
                key = setting.called, setting.device_kind, row.phase, row.axis
                groups.setdefault(key, []).append((setting, row))
    return [_cards(*key, pairs) for key, pairs in groups.items()]


def _cards(
    model: str, kind: str, phase: str, axis: str, pairs: Sequence[tuple[Setting, BoundaryRow]]
) -> Table:
    budgets = sorted(
        {setting.budget_bytes for setting, _ in pairs}, key=lambda size: (size is None, size or 0)
    )
    total = next((setting.total_bytes for setting, _ in pairs), None)
    columns = ["mode", *(formats.card(budget, total) for budget in budgets)]
    lines: dict[tuple[str, Variant], dict[int | None, str]] = {}
    for setting, row in pairs:
        lines.setdefault((row.engine, variant_of(row)), {})[setting.budget_bytes] = longest(row)
    engines = len({engine for engine, _ in lines}) > 1
    variants = [variant for _, variant in lines]
    rows = [
        [
            tell_apart(variant, variants) + (f" ({engine})" if engines else ""),
            *(found.get(budget, formats.NOTHING) for budget in budgets),
        ]
        for (engine, variant), found in sorted(lines.items(), key=_order)
    ]
    unit = "sequences of the largest batch" if axis == "batch_size" else _PHASES[phase]
    caption = f"Which card holds how much: {model} on {kind}, {unit}"
    return Table(columns, rows, caption, frozenset(columns[1:]))


def _order(line: tuple[tuple[str, Variant], object]) -> tuple[object, ...]:
    (engine, variant), _ = line
    return engine, variant.order


def longest(row: BoundaryRow) -> str:
    """The largest value that passed: `3,264`, or `≥ 8,000` where memory never ran out, or has not yet. A search that was
    stopped before any passed tells nothing.
    """
    if row.last_ok is None:
        return formats.NOTHING if row.censored or row.is_open or row.has_only_failed else "none"
    return f"≥ {row.last_ok:,}" if row.censored or row.is_open else f"{row.last_ok:,}"


def boundaries(settings: Sequence[Setting]) -> Section | None:
    """Every bracket with its confirmations, beside its prediction."""
    rows = [(setting, row) for setting in settings for row in setting.boundaries]
    if not rows:
        return None
    columns = [
        "on",
        "mode",
        "bracket",
        "what grows",
        "confirmed",
        "predicted",
        "error",
        "KV per token",
        "by config",
    ]
    numeric = frozenset(columns) - {"on", "mode", "what grows"}
    blocks: list[Block] = [
        Paragraph([
            "A bracket (a, b] says: a passed, b ran out of memory, and nothing between them was tried. "
            "“≥” means that memory never ran out. Error: how far the prediction lies above (+) or below (−) the "
            "bracket, in per cent of its nearer end; “inside”: it lies within. KV per token: bytes the cache grew by for each token, measured and as "
            "the model's config implies."
        ]),
        Table(columns, [_line(s, row) for s, row in rows if s.main.asks(row)], "", numeric, group="on"),
        *boundary_by_card(settings),
        *frontiers(settings),
    ]  # fmt: skip
    others = [_line(s, row) for s, row in rows if not s.main.asks(row)]
    if others:
        folded = Table(columns, others, "", numeric, group="on")
        blocks.append(Folded("Under other prompts, batches and penalties", [folded]))
    odd = [row for _, row in rows if row.non_monotone]
    blocks += [
        Paragraph([
            f"Not monotone: {row.mode} on {formats.card(row.budget_bytes)} contradicted its bracket at "
            f"{formats.listing([f'{value:,}' for value in row.non_monotone])}; the bracket is not to be trusted there."
        ])
        for row in odd
    ]  # fmt: skip
    blocks += [
        Paragraph([
            f"Synthetic probes of {row.mode} on {formats.card(row.budget_bytes)} ended otherwise than real runs at "
            f"{formats.listing([f'{value:,}' for value in row.refuted])}; the bracket is of real runs alone."
        ])
        for _, row in rows
        if row.refuted
    ]  # fmt: skip
    return Section("Where memory ends", blocks)


def _line(setting: Setting, row: BoundaryRow) -> list[str]:
    return [
        setting.words(engine=True),
        mode_words(setting.names, row.identity),
        bracket(row),
        _grows(row),
        f"{row.confirmed_ok} ok, {row.confirmed_oom} oom",
        predicted(row),
        "inside" if row.searched and row.error_pct == 0 else formats.percent(row.error_pct),
        _bytes(row.bytes_per_token),
        _bytes(row.analytic_bytes_per_token),
    ]


def _grows(row: BoundaryRow) -> str:
    """What the numbers count, and under which condition."""
    about = ["sequences" if row.axis == "batch_size" else _PHASES[row.phase]]
    if row.prompt_tokens is not None and row.phase == "decode":
        about.append(f"prompt {row.prompt_tokens:,}")
    if row.axis == "batch_size" and row.length is not None:
        about.append(f"length {row.length:,}")
    about += axes.unusual(row.identity, Role.CONDITION, but=["prompt_tokens"])
    if row.prefill_reach:
        about.append("read by chunked prefill")
        if row.first_oom_index is not None:
            about.append(f"token by token a run ended at {row.first_oom_index:,}")
    if not row.searched:
        about.append("from the measured runs")
    return ", ".join(about)


def predicted(row: BoundaryRow) -> str:
    """A cache that does not grow leaves only token ids to fill a card: that is no boundary."""
    if row.analytic_bytes_per_token == 0 and (row.predicted is None or row.predicted > _NO_END):
        return "no end"
    return formats.count(row.predicted)


def bracket(row: BoundaryRow) -> str:
    if row.censored:
        return longest(row)
    if row.is_open:
        return formats.NOTHING if row.last_ok is None else f"{longest(row)}, not ended"
    return f"({row.last_ok or 0:,}, {row.first_oom:,}]{', not ended' if row.is_wide else ''}"


def _bytes(value: float | None) -> str:
    return formats.NOTHING if value is None else f"{value:,.0f} B"
