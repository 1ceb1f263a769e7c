"""The answer first: how far each mode came on each card, and which one to use."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from orchestrator.boundary.rows import BoundaryRow
from orchestrator.report import words
from orchestrator.report.document import Block, Bullets, Paragraph, Picture, Section, Span, Strong
from orchestrator.report.scene import Scene, Variant, short
from orchestrator.report.sections.cards import card_tables
from workers.modes import MODES, CachePolicy

#: A bounded mode that is faster by less than this is no reason to give up attention to the whole text.
_WORTH = 1.2


def answer(scenes: Sequence[Scene], first_picture: Picture | None) -> Section:
    engines = len({scene.engine for scene in scenes}) > 1
    blocks: list[Block] = list(card_tables(scenes)) if len({s.budget_bytes for s in scenes}) > 1 else []
    sentences = [_sentence(scene, engines) for scene in scenes]
    if len(sentences) == 1:
        blocks.append(Paragraph(sentences[0]))
    elif sentences:
        blocks.append(Bullets(sentences))
    if first_picture is not None:
        blocks.insert(1, first_picture)
    if not scenes:
        blocks.append(Paragraph(["No generation run has ended yet: there is no boundary to report."]))
    return Section("The answer", blocks)


def _sentence(scene: Scene, engines: bool) -> list[Span]:
    spans: list[Span] = [Strong(scene.words(engine=engines)), ": "]
    reaches = [reach for row in scene.boundaries if (reach := _reach(scene, row)) is not None]
    if not reaches:
        return [*spans, "no mode has come far enough to tell."]
    phrases = [
        *_failing([r for r in reaches if not r.row.censored]),
        *_passing([r for r in reaches if r.row.censored]),
    ]
    return [*spans, f"{'; '.join(phrases)}. ", *_recommendation(scene, reaches)]


@dataclass(frozen=True, slots=True)
class _Reach:
    """`tokens`: the longest length that passed. `speed`: median tok/s at the longest length all modes passed."""

    row: BoundaryRow
    variant: Variant | None
    tokens: int
    speed: float | None

    @property
    def name(self) -> str:
        return self.row.mode if self.row.draft is None else f"{self.row.mode} ({short(self.row.draft)})"

    @property
    def bounded(self) -> bool:
        return MODES[self.row.mode].policy is not CachePolicy.FULL


def _reach(scene: Scene, row: BoundaryRow) -> _Reach | None:
    main = scene.main
    if (row.phase, row.axis) != ("decode", "length") or not main.asks(row):
        return None
    variant = next((v for v in main.variants() if (v.mode, v.draft) == (row.mode, row.draft)), None)
    speed = None
    if variant is not None:
        passed = main.of(variant, main.summary).filter(pl.col("outcome") == "ok").sort("length")
        speed = passed["tokens_per_s_median"].drop_nulls().last() if passed.height else None
    return _Reach(row, variant, row.last_ok or 0, speed)  # type: ignore[arg-type]


def _failing(reaches: Sequence[_Reach]) -> list[str]:
    phrases = []
    for reach in sorted(reaches, key=lambda reach: reach.tokens):
        row = reach.row
        if not reach.tokens and row.searched:
            phrases.append(f"{reach.name} does not even pass {words.plural(row.first_oom or 1, 'token')}")
        elif row.searched:
            phrases.append(
                f"{reach.name} runs out of memory after {reach.tokens:,} tokens (first failure at {row.first_oom:,}, "
                f"confirmed {row.confirmed_ok}× below and {row.confirmed_oom}× above)"
            )
        else:
            at = f", at token {row.first_oom_index:,}" if row.first_oom_index is not None else ""
            passed = f"passes {reach.tokens:,} tokens and " if reach.tokens else ""
            phrases.append(f"{reach.name} {passed}runs out of memory when asked for {row.first_oom:,}{at}")
    return phrases


def _passing(reaches: Sequence[_Reach]) -> list[str]:
    by_tokens: dict[tuple[int, bool], list[str]] = {}
    for reach in reaches:
        by_tokens.setdefault((reach.tokens, reach.bounded), []).append(reach.name)
    return [
        f"{words.listing(names)} passed {tokens:,} tokens, the longest tried{', in constant memory' if bounded else ''}"
        for (tokens, bounded), names in sorted(by_tokens.items())
    ]


def _recommendation(scene: Scene, reaches: Sequence[_Reach]) -> list[Span]:
    honest = [r for r in reaches if r.variant is None or r.variant.injected is None]
    if not honest:
        return ["Its acceptance was injected: no mode to recommend from that."]
    furthest = max(reach.tokens for reach in honest)
    candidates = [reach for reach in honest if reach.tokens >= furthest]
    full = [reach for reach in candidates if not reach.bounded]
    fastest = max(candidates, key=_speed)
    best = (
        max(full, key=_speed)
        if full and _speed(fastest) < _WORTH * _speed(max(full, key=_speed))
        else fastest
    )
    spans: list[Span] = ["Use ", Strong(best.name), ": "]
    if not best.bounded:
        why = f"it passes every length tried, up to {furthest:,} tokens, and attends to all of the text"
    elif full:
        why = f"nothing ran out of memory, and it is {_speed(best) / max(_speed(max(full, key=_speed)), 1e-9):.1f}× as fast"
    else:
        other = max((r.tokens for r in honest if not r.bounded), default=None)
        why = f"it goes on where memory ends for {_without(honest)}, at {words.card(scene.budget_bytes, scene.total_bytes)}"
        if other:
            why += f"; up to {other:,} tokens a full cache fits, and only that one sees the whole text"
    speed = _faster(best, candidates)
    return [*spans, f"{why}{speed}."]


def _without(reaches: Sequence[_Reach]) -> str:
    names = sorted({reach.row.mode for reach in reaches if not reach.row.censored}, key=list(MODES).index)
    return words.listing(names) if names else "the others"


def _faster(best: _Reach, candidates: Sequence[_Reach]) -> str:
    plain = next(
        (r for r in candidates if r.row.mode == best.row.mode.removesuffix("+spec") and r is not best), None
    )
    if (
        plain is None
        or not plain.speed
        or best.speed is None
        or best.variant is None
        or not best.variant.speculative
    ):
        return ""
    return f"; speculation makes it {best.speed / plain.speed:.2f}× as fast as {plain.name}"


def _speed(reach: _Reach) -> float:
    return reach.speed or 0.0
