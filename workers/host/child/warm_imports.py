"""Imported once, by the fork server: a small model is loaded and its tokenizer used, as every cell does with its own.

What torch and transformers import, compile (a thousand patterns of weight conversions, one for each tensor's name)
and remember at a process's first load is there for every cell then: it is half of a small model's load. The fork
server's environment keeps it to one thread, as a fork asks for.

More than once, since CPython rewrites a function for the types it meets only when it has run a few times: done here,
the next cell neither waits for that nor gets copies of the pages that it is written to.
"""

import torch

from workers.cell import ModelRef
from workers.models.load import load_model
from workers.models.tokenizer import load_tokenizer, tokenizer_key
from workers.text import sources

_SMALL = "pocket"
_TIMES = 8


def _rehearse() -> None:
    ref = ModelRef(target=_SMALL, dtype="float32")
    load_model(_SMALL, ref, torch.device("cpu"))
    tokenizer = load_tokenizer(_SMALL, ref)
    tokenizer.decode(tokenizer("a")["input_ids"])
    tokenizer_key(_SMALL, ref)
    sources.resolve("builtin")


for _ in range(_TIMES):
    _rehearse()
