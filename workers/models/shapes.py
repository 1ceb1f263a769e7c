"""The shapes of well-known models, shipped as data: `random:NAME` builds them without weights or network."""

import difflib
import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def shapes() -> dict[str, dict[str, Any]]:
    """name -> {"source": hub id the shape is of, "parameters": count, "config": config.json's content}."""
    table: dict[str, dict[str, Any]] = json.loads(
        (Path(__file__).parent / "data" / "shapes.json").read_text()
    )
    return table


def nearest(name: str) -> str:
    return difflib.get_close_matches(name.lower(), shapes(), 1, 0.0)[0]
