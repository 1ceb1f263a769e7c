"""A run folder -> tables, pictures, report.md and report.html. Also of a run that is not finished."""

from dataclasses import replace
from pathlib import Path

from orchestrator.answer import FILE
from orchestrator.journal.folder import read_run
from orchestrator.report.document import Document, files, with_files_of_their_own
from orchestrator.report.html import to_html
from orchestrator.report.longest_runs import comparable_runs, longest_runs
from orchestrator.report.markdown import to_markdown
from orchestrator.report.noisy_machine import noisy_machine
from orchestrator.report.pictures.runs import memory_by_tokens
from orchestrator.report.sections import (
    answer,
    cards,
    devices,
    failures,
    fragmentation,
    growth,
    method,
    quality,
    retrieval,
    speculation,
    speed,
    trade,
)
from orchestrator.report.sections.weighing import Evidence
from orchestrator.report.setting import names_of, settings
from orchestrator.tables.write import write_tables

#: The answer and the brackets: what report.md shows at once.
_OPEN_SECTIONS = 2


def render(folder: str | Path) -> str:
    """Write everything that is derived from the journal; where `report.md` now is (a path, or a URL).

    Raises `FolderError` where there is no run folder, `SchemaTooNew`, `StoreError`.
    """
    run = read_run(folder)
    with write_tables(run) as tables:
        found, names = settings(tables), names_of(tables.attempts)
        runs = longest_runs(found, tables.view)
        engines = len({setting.engine for setting in found}) > 1
        telling = max(
            (place for place in runs if any(run.by_token.height for run in runs[place])),
            key=lambda place: (sum(r.out_of_memory for r in runs[place]), -place),
            default=None,
        )
        first = None if telling is None else memory_by_tokens(found[telling], runs[telling], engines)
        evidence = Evidence.of(tables, run.spec)
        as_data = answer.as_data(found, evidence, names, noisy_machine(tables.attempts))
        sections = [
            answer.answer(found, evidence, first, names),
            cards.boundaries(found),
            devices.devices(found),
            speed.lengths(found),
            speed.speed_pictures(found, runs),
            trade.trade(tables.attempts, tables.quality, tables.boundaries, names),
            quality.quality(tables.quality, names),
            quality.text_sanity(
                found, comparable_runs(found, tables.view), is_scored=tables.quality.height > 0
            ),
            retrieval.retrieval(tables.retrieval, tables.effective_length, names),
            speculation.speculation(tables.summary, names),
            growth.growth(found, runs),
            fragmentation.fragmentation(
                found, is_default=run.manifest is None or not run.manifest.environment.sets_cuda_allocator
            ),
            failures.failures(tables.attempts, tables.view, names),
            method.method(run, tables),
        ]
        document = with_files_of_their_own(
            Document(
                title=f"Where memory ends: {method.title(run.spec, run.manifest)}",
                subtitle=method.progress(run, tables),
                sections=[
                    replace(section, folded=place >= _OPEN_SECTIONS)
                    for place, section in enumerate(section for section in sections if section is not None)
                ],
                warnings=method.warnings(run, tables),
            )
        )
    run.store.write(FILE, as_data.to_json().encode())
    for name, data in files(document).items():
        run.store.write(name, data)
    run.store.write("report.html", to_html(document).encode())
    run.store.write("report.md", to_markdown(document).encode())
    return f"{run.store.url.rstrip('/')}/report.md"
