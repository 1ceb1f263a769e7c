"""Loads a small model and uses its tokenizer when it is imported. The fork server imports it once.

At a process's first load torch and transformers import modules and compile a thousand patterns of weight conversions.
That is half of a small model's load. Done here, every cell has it already. The fork server's environment keeps it to
one thread, as a fork requires.

It is done several times. CPython specialises a function for the types of its arguments only after it has run a few
times. Done here, no cell waits for that, nor copies the pages that it is written to.
"""

import torch

from workers.cell import ModelRef
from workers.models.load import load_model
from workers.models.tokenizer import load_tokenizer, tokenizer_key
from workers.text import sources

_SMALL = "pocket"
_TIMES = 8


def _load_once() -> None:
    ref = ModelRef(target=_SMALL, dtype="float32")
    load_model(_SMALL, ref, torch.device("cpu"))
    tokenizer = load_tokenizer(_SMALL, ref)
    tokenizer.decode(tokenizer("a")["input_ids"])
    tokenizer_key(_SMALL, ref)
    sources.resolve("builtin")


for _ in range(_TIMES):
    _load_once()
