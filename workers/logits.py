"""Teacher-forced logits of one mode and engine, one token at a time: to hold an implementation against a reference."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from workers.cell import Cell, ModelRef
from workers.engines import ENGINES, open_session
from workers.engines.session import ModeUnsupported
from workers.models.load import LoadError, load_model
from workers.modes import MODES, SCORE, Streaming, modes_with

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRequest:
    model: str
    mode: str
    engine: str
    sinks: int
    window: int
    dtype: str


def write_logits(request: LogitsRequest, tokens: Path, out: Path) -> tuple[int, int]:
    """Write tensor `logits`, [T, V] float32, row t after reading token t. Returns (T, V).

    Raises ValueError with one line that names the argument, its value and the remedy.
    """
    _check(request)
    _check_out(out)
    ids_T = _read_ids(tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = MODES[request.mode].policy
    ref = ModelRef(target=request.model, dtype=request.dtype)
    cell = Cell(
        model=ref,
        mode=request.mode,
        engine=request.engine,  # type: ignore[arg-type]
        workload=SCORE.name,
        prompt_tokens=0,
        length=len(ids_T),
        streaming=Streaming(sinks=request.sinks, window=request.window)
        if policy.parameters is Streaming
        else None,
    )
    try:
        loaded = load_model(request.model, ref, device)
        if int(ids_T.max()) >= loaded.vocab_size:
            raise ValueError(
                f"--tokens: id {int(ids_T.max())} is beyond the vocabulary of {loaded.vocab_size}"
            )
        logits_TV = open_session(cell, loaded, None).logits(ids_T)
    except (LoadError, ModeUnsupported) as error:
        raise ValueError(f"--model {request.model}: {error}") from None
    try:
        save_file({"logits": logits_TV.float().contiguous()}, out)
    except SafetensorError as error:
        raise ValueError(f"--out {out}: {error}") from None
    return logits_TV.shape[0], logits_TV.shape[1]


def _check(request: LogitsRequest) -> None:
    plain = modes_with(SCORE)
    if request.mode not in plain:
        raise ValueError(
            f"--mode {request.mode}: one of {', '.join(plain)} (a decoder does not change logits)"
        )
    if request.engine not in ENGINES:
        raise ValueError(f"--engine {request.engine}: one of {', '.join(ENGINES)}")
    if request.engine not in MODES[request.mode].engines:
        raise ValueError(f"--engine {request.engine} has no mode {request.mode}")
    if request.dtype not in DTYPES:
        raise ValueError(f"--dtype {request.dtype}: one of {', '.join(DTYPES)}")
    if request.window < request.sinks:
        raise ValueError(f"--window {request.window} is smaller than --sinks {request.sinks}")


def _check_out(out: Path) -> None:
    """Before minutes of work. A device or a pipe would be replaced by a file."""
    try:
        other = out.exists() and not out.is_file()
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}") from None
    if other:
        raise ValueError(f"--out {out}: there is something that is no file: give another name")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: {out.parent} is no folder: make it, or give another name")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: {out.parent} cannot be written: give another name")


def _read_ids(tokens: Path) -> torch.Tensor:
    try:
        ids = json.loads(tokens.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokens {tokens}: {error}") from None
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) and 0 <= i < 2**31 for i in ids):
        raise ValueError(f"--tokens {tokens}: a JSON list of token ids, at least one, each 0 or more")
    return torch.tensor(ids)
