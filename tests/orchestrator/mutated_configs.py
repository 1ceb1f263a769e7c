"""Configs of known families with something wrong in them, the same ones for the same seed."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.workers.models.families import tiny_config

FAMILIES = (
    "llama",
    "gemma3_text",
    "deepseek_v3",
    "qwen3_next",
    "granitemoehybrid",
    "gpt_oss",
    "gpt2",
    "mistral3",
    "mamba2",
)
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 10**12, 10**30, 0.5, -0.0, 1e300, float("inf"), float("nan"), "", "auto", "7",
    [], [0], [0.0, float("inf")], {}, {"a": 1}, "\x00", "é" * 50,
)  # fmt: skip


def mutated(count: int, seed: int = 0) -> Iterator[str]:
    """The texts of `count` files config.json."""
    draw = random.Random(seed)
    for _ in range(count):
        content = tiny_config(draw.choice(FAMILIES)).to_dict()
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            _mutate(draw, content)
        text = json.dumps(content, default=str)
        yield text[: draw.randrange(len(text))] if draw.random() < 0.03 else text


def _mutate(draw: random.Random, content: dict[str, Any]) -> None:
    key = draw.choice(list(content))
    if isinstance(content[key], dict) and content[key] and draw.random() < 0.5:
        _mutate(draw, content[key])
    elif draw.random() < 0.15:
        del content[key]
    elif isinstance(content[key], int) and draw.random() < 0.3:
        content[key] = content[key] * draw.choice((-1, 3, 10**3, 10**6, 10**9))
    else:
        content[key] = draw.choice(_VALUES)


def write(folder: Path, text: str) -> str:
    """A model folder with this config; its name for a sweep file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return f"random:{folder}"
