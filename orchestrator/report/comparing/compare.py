"""`oomline compare`: Markdown, JSON, or a folder with pages and pictures."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.journal.store import LocalStore
from orchestrator.report.comparing.comparison import Comparison, read_comparison
from orchestrator.report.comparing.fail_on import Worse
from orchestrator.report.comparing.told import as_document
from orchestrator.report.document import files, with_files_of_their_own
from orchestrator.report.html import to_html
from orchestrator.report.markdown import to_markdown


def compare(folders: Sequence[str | Path]) -> str:
    """Return Markdown: what differs in the setup, then boundaries, speed and memory of what the runs have in common.

    A boundary differs when the brackets are disjoint, a speed when the 95 % intervals are, a peak when the ranges
    over the repeats are and lie more than 1 % apart. Cells are equal when everything but the device is.
    Raises `FolderError`, `SchemaTooNew`, `StoreError`.
    """
    return to_markdown(as_document(read_comparison(folders), pictures=False))


def write_pages(found: Comparison, worse: Sequence[Worse], out: Path) -> str:
    """Write compare.html, the same as Markdown, and their pictures into `out`. Return the path of the HTML page."""
    document = with_files_of_their_own(as_document(found, worse, pictures=True))
    store = LocalStore(out)
    for name, data in files(document).items():
        store.write(name, data)
    store.write("compare.md", to_markdown(document).encode())
    store.write("compare.html", to_html(document).encode())
    return str(out / "compare.html")
