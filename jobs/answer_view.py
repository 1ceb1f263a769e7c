"""The answer, on a terminal: the sentences, a table, and where the report is."""

import sys
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.output import say
from orchestrator.answer import RunAnswer, read_answer
from orchestrator.journal.store import Store


def print_answer(answer: RunAnswer, console: Console) -> None:
    for on in dict.fromkeys(line.on for line in answer.lines):
        table = Table(title=Text(_printable(on), style="italic"), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("mode")
        for header in ("bracket", "predicted", "tok/s"):
            table.add_column(header, justify="right")
        for line in answer.lines:
            if line.on == on:
                table.add_row(*map(Text, (_printable(line.mode), line.bracket, line.predicted, line.speed)))
        console.print(table)
    for sentence in answer.sentences:
        console.print(Text(_printable(sentence)))


def _printable(text: str) -> str:
    """A model's name may hold what moves a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "�" for sign in text)


def say_answer(store: Store) -> None:
    """Print the answer of the last report and where its page is. Nothing where there is none."""
    answer = read_answer(store)
    if answer is None:
        return
    text = StringIO()
    # As wide as the terminal; a log has room for every table.
    width = None if sys.stdout.isatty() else 120
    print_answer(answer, Console(file=text, width=width))
    for line in text.getvalue().splitlines():
        say(line.rstrip())
    say(f"page: {page_of(store)}")


def page_of(store: Store) -> str:
    """Return the address of the HTML report, which a terminal may make a link of."""
    page = f"{store.url.rstrip('/')}/report.html"
    return page if "://" in page else Path(page).resolve().as_uri()
