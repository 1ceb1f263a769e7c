"""Parts of a journal that its store did not take, kept on this machine until it does."""

from pathlib import Path

from orchestrator.journal.parts import name_of, sequence_of
from orchestrator.journal.store import LocalStore

#: Below the working directory, like a run folder that has no --out.
FOLDER = Path("runs", "kept")


class Kept:
    """The parts of one run, oldest first, in `runs/kept/RUN_ID`. A later driver of this run finds them there."""

    def __init__(self, run_id: str, url: str) -> None:
        self.folder = (FOLDER / run_id).absolute()
        self._url = url
        self._files = LocalStore(self.folder)

    def names(self) -> list[str]:
        return sorted(self._files.names("."), key=lambda name: (sequence_of(name), name))

    def add(self, data: bytes) -> None:
        """Durable on return. Raises `StoreFull`, `OSError`."""
        last = max(map(sequence_of, self.names()), default=0)
        self._files.write(name_of(data, last + 1), data)

    def read(self, name: str) -> bytes:
        return self._files.read(name)

    def drop(self, name: str) -> None:
        """The store has it. The folder goes with its last file."""
        self._files.remove(name)
        if not self.names():
            self.folder.rmdir()

    def says(self) -> str | None:
        """Where they lie and how to go on; None where there are none."""
        parts = len(self.names())
        if not parts:
            return None
        return (
            f"{self._url} did not take {parts} part{'s' * (parts > 1)} of the journal: kept in {self.folder}. When it "
            "answers again, run the same command in this directory: it takes them over first"
        )
