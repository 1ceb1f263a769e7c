"""Loaded models: what they are, where they are, and what loading them costs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from tests.workers.models.families import tiny_model
from tests.workers.models.folders import NEOX, pickle_weights, save, save_gguf
from workers.cell import ModelRef
from workers.models.load import (
    LoadedModel,
    LoadError,
    load_model,
    load_tokenizer,
    read_config,
    weights_bytes_of,
)

CPU = torch.device("cpu")
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 8388608\n"


def load(name: str | Path, seed: int = 0, **options: object) -> LoadedModel:
    return load_model(str(name), ModelRef(target=str(name), **options), CPU, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_folder_is_loaded_in_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    loaded = load(save(tmp_path), dtype=dtype, attn_implementation="eager")
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.model.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.eos_ids, loaded.max_positions, loaded.vocab_size) == (frozenset({3}), 128, 2048)


def test_conversion_is_exact(tmp_path: Path) -> None:
    folder = save(tmp_path, torch.float32)
    single, half = load(folder, dtype="float32"), load(folder, dtype="bfloat16")
    for exact, rounded in zip(single.model.parameters(), half.model.parameters(), strict=True):
        assert torch.equal(exact.bfloat16(), rounded)
        assert rounded.is_contiguous()
        assert rounded.data_ptr() % 64 == 0


def test_a_tensor_that_the_files_lack_is_a_load_error(tmp_path: Path) -> None:
    """Not drawn at random in silence."""
    lacking = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"
    pickled = pickle_weights(save(tmp_path))
    weights = torch.load(pickled / "pytorch_model.bin")
    torch.save({name: w for name, w in weights.items() if name != lacking}, pickled / "pytorch_model.bin")
    with pytest.raises(LoadError, match=f"lack 1 of its tensors, {lacking}"):
        load(pickled, allow_pickle=True)


def test_random_weights_follow_their_seed_and_keep_their_name(tmp_path: Path) -> None:
    name = f"random:{save(tmp_path)}"
    state = torch.random.get_rng_state()
    one, again, other = load(name), load(name), load(name, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [m.model.gpt_neox.embed_in.weight for m in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert 0.019 < weights[0].float().std() < 0.021
    assert (one.name, one.load_was_warm, one.model.dtype) == (name, None, torch.bfloat16)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_count_once(tmp_path: Path, tied: bool) -> None:
    loaded = load(save(tmp_path, tie_word_embeddings=tied), dtype="float32")
    embedding = NEOX["vocab_size"] * NEOX["hidden_size"] * 4
    attention, feed_forward, norms = (32 * 96 + 96) + (32 * 32 + 32), 2 * 32 * 64 + 64 + 32, 4 * 32
    rotary = sum(b.untyped_storage().nbytes() for b in loaded.model.buffers())
    layers = 2 * (attention + feed_forward + norms) * 4
    assert loaded.weights_bytes == (2 - tied) * embedding + layers + 2 * 32 * 4 + rotary


def test_quantised_weights_count_as_what_they_consist_of() -> None:
    """A tensor that is two others inside, and scales that a quantiser keeps at its parameter."""
    plain = tiny_model("llama")
    before = weights_bytes_of(plain)
    layer = plain.model.layers[0].mlp
    rows = layer.up_proj.weight.shape
    halves = TwoTensor(torch.zeros(rows, dtype=torch.uint8), torch.ones(rows, dtype=torch.uint8))
    layer.up_proj.weight = torch.nn.Parameter(halves, requires_grad=False)
    codes = torch.nn.Parameter(torch.zeros(rows, dtype=torch.uint8), requires_grad=False)
    codes.quant_state = SimpleNamespace(absmax=torch.ones(7), code=None, dtype=torch.float32)
    layer.gate_proj.weight = codes
    numel = rows.numel()
    assert weights_bytes_of(plain) == before - 2 * numel * 4 + 2 * numel + numel + 7 * 4


def test_gguf(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf")
    loaded = load(path)
    assert read_config(str(path), ModelRef(target=str(path))).vocab_size == loaded.vocab_size == 300
    assert (loaded.model.dtype, loaded.eos_ids, loaded.max_positions) == (torch.bfloat16, frozenset({2}), 256)
    assert loaded.model(torch.tensor([[1, 5]])).logits.isfinite().all()
    assert load_tokenizer(str(path), ModelRef(target=str(path))).decode([3 + ord("a")]) == "a"


def test_gguf_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install gguf accelerate"):
        load(tmp_path / "tiny.gguf")


def test_pickled_weights_need_an_opt_in(tmp_path: Path) -> None:
    folder = pickle_weights(save(tmp_path))
    with pytest.raises(LoadError, match=r"pickled \(pytorch_model.bin\).*allow_pickle: true"):
        load(folder)
    assert load(folder, allow_pickle=True).model.dtype == torch.bfloat16


def test_a_pickle_with_code_in_it_is_refused_even_then(tmp_path: Path) -> None:
    folder = pickle_weights(save(tmp_path))
    torch.save({"weight": _Payload(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class _Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_remote_code_does_not_run_unless_trusted(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(
        f"open({str(marker)!r}, 'w')\n"
        "from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM\n"
        "class OwnConfig(GPTNeoXConfig):\n    model_type = 'own'\n"
        "class Own(GPTNeoXForCausalLM):\n    config_class = OwnConfig\n"
    )
    for path in folder.glob("*.safetensors*"):  # what transformers renames for its own types only
        path.write_bytes(path.read_bytes().replace(b'"embed_out.weight"', b'"lm_head.weight"  '))
    text = (folder / "config.json").read_text().replace('"gpt_neox"', '"own"')
    own = '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},'
    (folder / "config.json").write_text("{" + own + text.lstrip("{\n"))
    with pytest.raises(LoadError, match="trust_remote_code"):
        load(folder)
    assert not marker.exists()
    assert type(load(folder, trust_remote_code=True).model).__name__ == "Own"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5", "vocab_size": 8}'), "'t5' is no causal language model"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: [p.write_bytes(b"") for p in folder.glob("*.safetensors")], "cut short .* download it again"),
        (lambda folder: [p.write_bytes(p.read_bytes()[:-9]) for p in folder.glob("*.safetensors")], "short: 9 bytes are missing; download it again"),
        (lambda folder: [p.unlink() for p in folder.glob("*.safetensors")], r"names (\d+) files, \1 of which are not there"),
        (lambda folder: [p.unlink() for p in folder.glob("*.safetensors*")], "no weights in safetensors"),
        (lambda folder: [p.write_text(LFS_POINTER) for p in folder.glob("*.safetensors")], "Git LFS pointer, not the file: run `git lfs pull`"),
        (lambda folder: (folder / "config.json").write_text(LFS_POINTER), "config.json is a Git LFS pointer"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "is not an index of weights"),
        (lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')), r"of its tensors have other shapes in the files than in config.json: .* is \[\d+.*32.*\] there"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_a_load_error_in_one_line(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(save(tmp_path))
    with pytest.raises(LoadError, match=message) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_names_that_lead_nowhere() -> None:
    for name in ("/no/such/folder", "./nothing", "a/b/c", "nothing.gguf"):
        with pytest.raises(LoadError, match="no such"):
            load(name)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with about 100 MB of bf16 weights, and how many bytes exactly; a small one beside it."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "small")
    save(folder / "large", vocab_size=32_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    return folder / "large", load(folder / "large").weights_bytes


_UNDER_LIMITS = """
import json, os, resource, sys, torch
from workers.cell import ModelRef
from workers.models.load import load_model

def data_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024

def load(name, dtype):
    load_model(name, ModelRef(target=name, dtype=dtype), torch.device("cpu"))

torch.set_num_threads(1)
small, cases = json.loads(sys.argv[1])
load(small, "float32"), load("random:" + small, "float32")  # what is imported on first use
for name, dtype, budget in cases:
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + int(budget),) * 2)
        try:
            load(name, dtype)
            print("ok")
        except Exception as error:
            print(type(error).__name__)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_loading_holds_no_second_copy(large: tuple[Path, int]) -> None:
    """A data limit 10 % above the expected peak lets a model in; one well below its weights does not.

    In the files' dtype the peak is the weights: mapped pages count as data, once. Converted, it is the mapped file
    and the new weights. Both limits are on growth, so a second copy anywhere would break the first of each pair.
    """
    folder, weights = large
    name, random = str(folder), f"random:{folder}"
    fits = [
        (name, "bfloat16", 1.1 * weights),
        (name, "float32", 1.1 * 3 * weights),
        (random, "bfloat16", 1.1 * weights),
    ]
    too_tight = [
        (name, "bfloat16", 0.7 * weights),
        (name, "float32", 0.7 * 3 * weights),
        (random, "bfloat16", 0.7 * weights),
    ]
    cases = json.dumps([str(folder.parent / "small"), fits + too_tight])
    child = subprocess.run(
        [sys.executable, "-c", _UNDER_LIMITS, cases], capture_output=True, text=True, check=True
    )
    assert child.stdout.split() == ["ok"] * 3 + ["RuntimeError"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("prefix", ["", "random:"])
def test_on_a_gpu_too(large: tuple[Path, int], prefix: str) -> None:
    folder, weights = large
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loaded = load_model(f"{prefix}{folder}", ModelRef(target="", dtype="float16"), device)
    assert {t.device.type for t in (*loaded.model.parameters(), *loaded.model.buffers())} == {"cuda"}
    largest = max(p.untyped_storage().nbytes() for p in loaded.model.parameters())
    assert torch.cuda.max_memory_allocated() - before <= weights + 2 * largest
