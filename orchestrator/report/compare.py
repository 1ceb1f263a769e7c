"""Two or more runs side by side, and which differences exceed the noise."""

from collections.abc import Sequence
from pathlib import Path


def compare(folders: Sequence[str | Path]) -> str:
    raise NotImplementedError
