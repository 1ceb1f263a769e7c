"""Small cells, and the tiny models they run."""

import itertools
import json
from pathlib import Path

from workers.cell import Cell, Lease, ModelRef

MiB = 2**20
_SERIAL = itertools.count()


def gpt_neox(folder: Path, **changes: object) -> str:
    """A `random:` model of a few MiB: 2 layers of 128, so a token's cache is 2 KiB in float32."""
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 8192,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "eos_token_id": 0,
        "bos_token_id": 0,
        **changes,
    }
    return _write(folder, config)


def gpt2(folder: Path) -> str:
    """Learned absolute positions, 64 of them."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 8192,
        "n_positions": 64,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 2,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    return _write(folder, config)


def lease(model: str, *, time_limit_s: float = 60, stall_timeout_s: float = 30, **cell: object) -> Lease:
    """`fault`: what `misbehaving` does; then the cell runs on its engine."""
    fault = cell.pop("fault", None)
    fields = {
        "model": ModelRef(target=model, draft=fault, dtype="float32"),
        "mode": "baseline",
        "engine": "eager" if fault is None else "graph",
        "prompt_tokens": 8,
        "length": 8,
        **cell,
    }
    return Lease(
        lease_id=f"test.1.{next(_SERIAL)}",
        cell=Cell(**fields),
        attempt=1,
        time_limit_s=time_limit_s,
        stall_timeout_s=stall_timeout_s,
    )


def _write(folder: Path, config: dict[str, object]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return f"random:{folder}"
