"""The answer first: how far each mode came on each card, and which one to use."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator.answer import AnswerLine, RunAnswer
from orchestrator.names import Names
from orchestrator.report import formats
from orchestrator.report.document import Block, Bullets, Paragraph, Picture, Section, Span, Strong
from orchestrator.report.sections.cards import bracket, card_tables, predicted
from orchestrator.report.sections.retrieval import found_sentences
from orchestrator.report.sections.weighing import Evidence, weigh
from orchestrator.report.setting import Setting, variant_of
from orchestrator.report.speed_claims import ENOUGH, Speed, claim, is_carried, is_faster, is_untold, speed_of
from orchestrator.tables.boundary_rows import BoundaryRow
from orchestrator.tables.quality import QualityBoundary
from workers.modes import BASELINE, MODES, Layout, mode_rank

#: A mode that drops tokens and is faster by less than this is no reason to give up attention to the whole text.
_WORTH = 1.2


def answer(
    settings: Sequence[Setting], evidence: Evidence, first_picture: Picture | None, names: Names
) -> Section:
    blocks: list[Block] = list(card_tables(settings)) if len({s.budget_bytes for s in settings}) > 1 else []
    sentences = _sentences(settings, evidence, names)
    if len(sentences) == 1:
        blocks.append(Paragraph(sentences[0]))
    elif sentences:
        blocks.append(Bullets(sentences))
    if first_picture is not None:
        blocks.append(first_picture)
    if not sentences:
        blocks.append(Paragraph(["No measured run has ended yet: there is nothing to report."]))
    return Section("The answer", blocks)


def as_data(settings: Sequence[Setting], evidence: Evidence, names: Names, noise: str | None) -> RunAnswer:
    """The same sentences as plain text behind `noise`, and a line for each mode whose end is known or looked for."""
    sentences = tuple(
        "".join(span if isinstance(span, str) else span.text for span in spans)
        for spans in _sentences(settings, evidence, names)
    )
    lines = tuple(
        AnswerLine(
            on=setting.words(engine=True),
            mode=setting.main.name(variant_of(row)),
            bracket=bracket(row),
            predicted=predicted(row),
            speed=_speed_words(setting, row),
        )
        for setting in settings
        for row in setting.boundaries
        if _is_length_of_decode(row) and setting.main.asks(row)
    )
    return RunAnswer((noise, *sentences) if noise is not None else sentences, lines)


def _speed_words(setting: Setting, row: BoundaryRow) -> str:
    passed = setting.main.of(variant_of(row), setting.main.summary).drop_nulls("tokens_per_s_median")
    if passed.is_empty():
        return formats.NOTHING
    last = passed.sort("length").row(-1, named=True)
    return f"{last['tokens_per_s_median']:,.1f} at {last['length']:,}"


def _sentences(settings: Sequence[Setting], evidence: Evidence, names: Names) -> list[list[Span]]:
    cards: dict[tuple[object, ...], list[Setting]] = {}
    for setting in settings:
        cards.setdefault(setting.card, []).append(setting)
    return [
        *(_sentence(group, evidence) for group in cards.values()),
        *_understanding(evidence.quality, names),
        *found_sentences(evidence.effective, names),
    ]


def _sentence(group: Sequence[Setting], evidence: Evidence) -> list[Span]:
    """All engines and drafts of one model on one card."""
    setting = group[0]
    spans: list[Span] = [Strong(setting.words(engine=False)), ": "]
    extents = [r for s in group for row in s.boundaries if (r := _extent(s, row, len(group) > 1)) is not None]
    if not extents:
        so_far = _searching(group)
        return [*spans, f"{'; '.join(so_far) or 'no mode has come far enough to tell'}."]
    by_mode: dict[tuple[str, bool], list[_Extent]] = {}
    for extent in sorted(extents, key=lambda extent: mode_rank(extent.row.mode)):
        by_mode.setdefault((extent.row.mode, extent.row.censored), []).append(extent)
    # One engine of a mode may end where the other goes on: each by its name then.
    both = {mode for mode, censored in by_mode if (mode, not censored) in by_mode}
    named = [
        (formats.listing([extent.name for extent in found]) if mode in both else mode, censored, found)
        for (mode, censored), found in by_mode.items()
    ]
    failing = [_failing(name, found) for name, censored, found in named if not censored]
    passing = _passing([(name, found) for name, censored, found in named if censored])
    return [
        *spans,
        f"{'; '.join([*failing, *passing, *_searching(group)])}. ",
        *_recommendation(setting, extents, evidence),
        *_not_searched(group),
    ]


def _not_searched(group: Sequence[Setting]) -> list[str]:
    """That a mode passed all lengths says where it ends only if that was looked for."""
    rows = [row for setting in group for row in setting.boundaries]
    if any(row.searched for row in rows) or not any(row.censored for row in rows):
        return []
    return [" No search was asked for: “boundary: {}” in the sweep file finds where each mode ends."]


def _searching(group: Sequence[Setting]) -> list[str]:
    """Modes whose end is still being looked for: no ground for a recommendation."""
    passed: dict[str, int] = {}
    failed: dict[str, int] = {}
    for setting in group:
        for row in setting.boundaries:
            if not (setting.main.asks(row) and _is_length_of_decode(row)):
                continue
            if row.is_open and row.last_ok:
                passed[row.mode] = max(passed.get(row.mode, 0), row.last_ok)
            elif row.has_only_failed and row.first_oom:
                failed[row.mode] = min(failed.get(row.mode, row.first_oom), row.first_oom)
    return [
        f"{mode} has {verb} {tokens:,} tokens, and its search has not ended"
        for verb, found in (("passed", passed), ("run out of memory by", failed))
        for mode, tokens in found.items()
    ]


def _is_length_of_decode(row: BoundaryRow) -> bool:
    return (row.phase, row.axis) == ("decode", "length")


def _understanding(found: Sequence[QualityBoundary], names: Names) -> list[list[Span]]:
    """One sentence per model, engine and condition: up to where each mode's perplexity stays sane."""
    models: dict[tuple[object, ...], list[QualityBoundary]] = {}
    for row in found:
        models.setdefault(row.peers, []).append(row)
    sentences: list[list[Span]] = []
    for rows in models.values():
        known = next((row.in_context for row in rows if row.in_context is not None), None)
        reading = f"{names.row(dict(rows[0].identity))} reading a long text, {rows[0].engine} engine"
        where: list[Span] = [Strong(", ".join([reading, *rows[0].others])), ": "]
        if known is None:
            sentences.append(
                [*where, "its trained context is not known, so there is nothing to hold it against."]
            )
            continue
        sane = [f"{row.mode} ({_against(row, known)})" for row in rows if row.departs_at is None]
        lost = [f"{row.mode} from position {row.departs_at:,}" for row in rows if row.departs_at is not None]
        phrases = []
        if sane:
            phrases.append(
                f"perplexity stays below twice its in-context {known:,.1f} for {formats.listing(sane)}"
            )
        if lost:
            phrases.append(f"it passes twice its in-context {known:,.1f} for {formats.listing(lost)}")
        sentences.append([*where, f"{'; '.join(phrases + _price(rows))}."])
    return sentences


def _price(rows: Sequence[QualityBoundary]) -> list[str]:
    """What reading every window again costs, against keeping a window."""
    bounded = [row for row in rows if not MODES[row.mode].policy.grows and row.tokens_per_s]
    again = [row for row in bounded if MODES[row.mode].policy.layout is Layout.NONE]
    kept = next((row for row in bounded if row not in again), None)
    if kept is None or not kept.tokens_per_s:
        return []
    return [
        f"{row.mode} is {kept.tokens_per_s / row.tokens_per_s:,.0f}× slower than {kept.mode}"
        for row in again
        if row.tokens_per_s
    ]


def _against(row: QualityBoundary, known: float) -> str:
    if row.beyond is None:
        return f"scored to {row.scored_to:,}"
    return f"{(row.beyond / known - 1) * 100:+.0f} % beyond it, to {row.scored_to:,}"


@dataclass(frozen=True, slots=True)
class _Extent:
    """`tokens`: the longest length that passed. `speed`: at the longest measured length that passed."""

    row: BoundaryRow
    injected: bool
    tokens: int
    speed: Speed

    @property
    def name(self) -> str:
        return self.speed.name

    @property
    def grows(self) -> bool:
        return MODES[self.row.mode].policy.grows

    @property
    def sees_all(self) -> bool:
        return MODES[self.row.mode].policy.sees_all


def _extent(setting: Setting, row: BoundaryRow, engines: bool) -> _Extent | None:
    main = setting.main
    if not _is_length_of_decode(row) or row.is_open or row.has_only_failed or not main.asks(row):
        return None
    variant = variant_of(row)
    passed = main.of(variant, main.summary).drop_nulls("tokens_per_s_median").sort("length")
    details = [setting.names.target(row.draft)] if row.draft is not None else []
    details += [setting.engine] if engines else []
    name = f"{row.mode} ({', '.join(details)})" if details else row.mode
    return _Extent(row, variant.injected is not None, row.last_ok or 0, _speed(name, passed))


def _speed(name: str, passed: pl.DataFrame) -> Speed:
    """At the last of the rows of `summary`, by length; 0 tokens per second where there is none."""
    if passed.is_empty():
        return Speed(name, 0.0, 0)
    return speed_of(name, passed.row(-1, named=True))


def _failing(mode: str, extents: Sequence[_Extent]) -> str:
    low, high = min(r.tokens for r in extents), max(r.tokens for r in extents)
    row = extents[0].row
    if len(extents) > 1:
        after = f"{low:,} tokens" if low == high else f"{low:,} to {high:,} tokens, by engine and draft"
        return f"{mode} runs out of memory after {after}"
    if not row.searched:
        at = f", at token {row.first_oom_index:,}" if row.first_oom_index is not None else ""
        passed = f"passes {low:,} tokens and " if low else ""
        return f"{mode} {passed}runs out of memory when asked for {row.first_oom:,}{at}"
    if not low:
        return f"{mode} does not even pass {formats.plural(row.first_oom or 1, 'token')}"
    return (
        f"{mode} runs out of memory after {low:,} tokens (first failure at {row.first_oom:,}; "
        f"confirmed {row.confirmed_ok}× below, {row.confirmed_oom}× above{'; its search has not ended' if row.is_wide else ''}){_token_by_token(row)}"
    )


def _token_by_token(row: BoundaryRow) -> str:
    """Where a search that read its texts as prompts has another end than a run that generated its tokens."""
    at, first = row.first_oom_index, row.first_oom
    if not row.prefill_reach or at is None or first is None or (row.last_ok or 0) < at <= first:
        return ""
    return f" where the text is read as a prompt; generated token by token it came to {at:,}"


def _passing(modes: Sequence[tuple[str, Sequence[_Extent]]]) -> list[str]:
    alike: dict[tuple[int, bool], list[str]] = {}
    for name, extents in modes:
        alike.setdefault((min(r.tokens for r in extents), extents[0].grows), []).append(name)
    return [
        f"{formats.listing(names)} passed {tokens:,} tokens, the longest tried{'' if grows else ', in constant memory'}"
        for (tokens, grows), names in sorted(alike.items())
    ]


def _recommendation(setting: Setting, extents: Sequence[_Extent], evidence: Evidence) -> list[Span]:
    """Of use the furthest, and of those the fastest; one that sees the whole text unless another is much faster."""
    honest = [extent for extent in extents if not extent.injected]
    if not honest:
        return ["Its acceptance was injected: no mode to recommend from that."]
    kept, decided = weigh(honest, evidence)
    furthest = max(extent.tokens for extent in kept)
    candidates = [extent for extent in kept if extent.tokens >= furthest]
    seeing = [extent for extent in candidates if extent.sees_all]
    full, fastest = (_fastest(seeing) if seeing else None), _fastest(candidates)
    if full is not None and (fastest.sees_all or not _is_worth(fastest, seeing)):
        best = full
        how_far = (
            f"passes every length tried, up to {furthest:,} tokens,"
            if full.row.censored
            else f"comes furthest, {furthest:,} tokens,"
        )
        why = f"it {how_far} and attends to the whole text"
    elif full is not None:
        best = fastest
        why = (
            f"{full.name} passes {furthest:,} tokens too and sees the whole text, but {claim(best.speed, full.speed)}"
            if full.speed.tokens_per_s
            else f"it passes {furthest:,} tokens"
        )
    elif not fastest.sees_all:
        best = fastest
        why = f"it goes on where a full cache no longer fits {formats.card(setting.budget_bytes, setting.total_bytes)}"
    else:
        best = fastest
        why = f"it comes furthest, {furthest:,} tokens"
    return [
        "Use ",
        Strong(best.name),
        f": {why}{_speculating(best, candidates)}.{decided}{_energy(best, candidates)}{_below(best, honest)}",
    ]


def _energy(best: _Extent, extents: Sequence[_Extent]) -> str:
    """What a million tokens take, beside the plain mode of the full cache where that was metered."""
    own = best.speed.joules_per_token
    if own is None:
        return ""
    said = f" A million tokens take {formats.energy(own)}"
    plain = next((e for e in extents if e.row.mode == BASELINE and e.row.engine == best.row.engine), None)
    other = plain.speed.joules_per_token if plain is not None and plain is not best else None
    return f"{said}, {own / other:.2f}× as much as with {BASELINE}." if other else f"{said}."


def _is_worth(dropping: _Extent, seeing: Sequence[_Extent]) -> bool:
    """Whether a mode that drops tokens is so much faster than each that sees the whole text."""
    quickest = max(seeing, key=lambda extent: extent.speed.tokens_per_s).speed
    return dropping.speed.tokens_per_s > _WORTH * quickest.tokens_per_s and is_faster(
        dropping.speed, quickest
    )


def _fastest(extents: Sequence[_Extent]) -> _Extent:
    """The fastest beyond the noise. Of those that cannot be told apart, one that sees the whole text, and one without a
    draft.
    """
    simplest = sorted(
        extents,
        key=lambda e: (not e.sees_all, MODES[e.row.mode].decoder.verifies, -e.speed.tokens_per_s),
    )
    best = simplest[0]
    for extent in simplest[1:]:
        if is_faster(extent.speed, best.speed):
            best = extent
    return best


def _below(best: _Extent, extents: Sequence[_Extent]) -> str:
    """Where a mode that sees the whole text still fits, if it does not come as far as `best`."""
    full = max((extent.tokens for extent in extents if extent.sees_all), default=0)
    if best.sees_all or not full or full >= best.tokens:
        return ""
    return (
        f" Up to {full:,} tokens the full cache fits; prefer it there, because only it sees the whole text."
    )


def _speculating(best: _Extent, candidates: Sequence[_Extent]) -> str:
    """What speculation gave or would give, against the same mode without it."""
    plain = MODES[best.row.mode].plain
    same = [e for e in candidates if e.row.engine == best.row.engine and MODES[e.row.mode].plain == plain]
    twin = next((e for e in same if e.row.mode == plain), None)
    if twin is None:
        return ""
    if twin is not best:
        said = claim(best.speed, twin.speed)
        return f"; {said}" if said else ""
    drafting = [e.speed for e in same if e is not twin and e.speed.tokens_per_s]
    if any(is_untold(speed, twin.speed) for speed in drafting):
        return f"; too few runs to tell whether speculation is faster: set “repeats: {ENOUGH}”"
    if any(not is_carried(speed, twin.speed) for speed in drafting):
        return "; whether speculation is faster cannot be told from runs on a noisy machine"
    return ""
