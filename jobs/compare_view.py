"""`oomline compare`, for a person and for a script."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from jobs.output import complain
from orchestrator.report.comparing.compare import write_pages
from orchestrator.report.comparing.comparison import read_comparison
from orchestrator.report.comparing.fail_on import parse_limits, worse_than
from orchestrator.report.comparing.told import as_document
from orchestrator.report.comparing.told import as_json as comparison_as_json
from orchestrator.report.markdown import to_markdown


def compare_command(folders: Sequence[str], *, as_json: bool, fail_on: str | None, out: Path | None) -> int:
    """Print the comparison. Return 1 where a run is worse than `fail_on` allows, else 0. Raises `SpecError`."""
    limits = {} if fail_on is None else parse_limits(fail_on)
    found = read_comparison(folders)
    worse = worse_than(found, limits)
    page = None if out is None else write_pages(found, worse, out)
    if as_json:
        typer.echo(json.dumps(comparison_as_json(found, worse), indent=2))
    else:
        typer.echo(to_markdown(as_document(found, worse, pictures=False)))
    if page is not None:
        complain(f"page: {page}")
    for each in worse:
        complain(f"worse than allowed: {each.words}")
    return 1 if worse else 0
