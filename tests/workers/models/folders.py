"""Small real model folders, made by transformers and gguf themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "eos_token_id": 3,
}


def save(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A random GPT-NeoX in `folder`, in safetensors."""
    shape = NEOX | changes
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, max_shard_size="200KB")
    return folder


def pickle_weights(folder: Path) -> Path:
    """Turn the safetensors of `folder` into one pickled file."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def save_gguf(
    path: Path, vocab: int = 300, hidden: int = 64, extend: Callable[[Any], None] | None = None
) -> Path:
    """A Llama of one layer with a byte tokenizer. `extend`: adds to the file, given its `gguf.GGUFWriter`."""
    import gguf  # optional where the other folders are wanted

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    letters = [chr(0x100 + index) for index in range(vocab - 259)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(letters)])
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    matrices = {"token_embd": (vocab, hidden), "output": (vocab, hidden)}
    matrices |= {f"blk.0.attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")}
    matrices |= {"blk.0.ffn_gate": (2 * hidden, hidden), "blk.0.ffn_up": (2 * hidden, hidden)}
    matrices |= {"blk.0.ffn_down": (hidden, 2 * hidden)}
    for name, shape in matrices.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * 0.02).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    if extend is not None:
        extend(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
