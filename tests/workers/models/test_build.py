"""Which class a configuration is built as: attention by name or by transformers' choice, the text part of wrappers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from orchestrator.predict.shape import shape_for
from tests.workers.engines.eager.tiny import cell
from tests.workers.engines.heard import Heard
from tests.workers.models.families import VOCAB, tiny_config, tiny_model
from workers.cell import ModelRef
from workers.engines.eager import open_session
from workers.models import Unavailable
from workers.models.build import from_config
from workers.models.load import LoadedModel, LoadError, load_model

CPU = torch.device("cpu")
#: Wrappers around a text model that has a class of its own, and around one that has none.
WRAPPERS = ("mistral3", "gemma3", "llava", "qwen3_vl", "qwen2_5_vl")


def load(name: str | Path, **options: object) -> LoadedModel:
    options = {"dtype": "float32"} | options
    return load_model(str(name), ModelRef(target=str(name), **options), CPU)  # type: ignore[arg-type]


def random(family: str, folder: Path, **changes: object) -> str:
    tiny_config(family, **changes).save_pretrained(folder)
    return f"random:{folder}"


def attention_of(loaded: LoadedModel) -> str:
    name: str = loaded.model.config.get_text_config(decoder=True)._attn_implementation
    return name


@pytest.mark.parametrize(
    ("family", "chosen"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager"), ("mamba2", "eager")]
)
def test_attention_is_what_transformers_would_choose(tmp_path: Path, family: str, chosen: str) -> None:
    """Loaded, and predicted with; a family that has no sdpa does not fail for want of it."""
    name = random(family, tmp_path)
    assert attention_of(load(name)) == chosen
    if family != "mamba2":  # whose state is not the prediction's to tell
        assert shape_for(name, ModelRef(target=name)).chosen_attention == chosen


def test_attention_by_name(tmp_path: Path) -> None:
    name = random("llama", tmp_path)
    for asked in ("eager", "sdpa", "flex_attention"):
        assert attention_of(load(name, attn_implementation=asked)) == asked


@pytest.mark.parametrize("asked", ["sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"])
@pytest.mark.parametrize("prefix", ["", "random:"])
def test_an_attention_that_a_family_lacks_names_the_key_and_what_there_is(
    tmp_path: Path, asked: str, prefix: str
) -> None:
    tiny_model("mamba2").save_pretrained(tmp_path)
    with pytest.raises(LoadError) as raised:
        load(f"{prefix}{tmp_path}", attn_implementation=asked)
    assert str(raised.value) == (
        f"{prefix}{tmp_path}: attn_implementation: Mamba2ForCausalLM has no {asked}; it has eager, or leave it at auto"
    )


def test_an_attention_whose_package_is_missing_names_it(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"a package is missing.*FlashAttention2"):
        load(random("llama", tmp_path), attn_implementation="flash_attention_2")


def whole(family: str, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(tiny_config(family)).eval()
    model.save_pretrained(folder)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", WRAPPERS)
def test_of_a_multimodal_checkpoint_the_text_part_is_loaded(tmp_path: Path, family: str) -> None:
    """Its logits are those of the whole; what sees pictures takes no memory."""
    model = whole(family, tmp_path)
    loaded = load(tmp_path)
    ids_BT = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids_BT).logits, model(input_ids=ids_BT).logits)
    text_part = [model.get_decoder(), model.get_output_embeddings()]
    parameters = {id(p): p.nbytes for part in text_part for p in part.parameters()}
    buffers = sum(b.nbytes for part in text_part for b in part.buffers())
    assert loaded.weights_bytes == sum(parameters.values()) + buffers
    assert loaded.weights_bytes < sum(p.nbytes for p in model.parameters())
    assert (loaded.vocab_size, loaded.max_positions) == (VOCAB, 256)


@pytest.mark.parametrize("family", WRAPPERS)
def test_a_multimodal_shape_is_built_and_predicted_as_its_text_part(tmp_path: Path, family: str) -> None:
    name = random(family, tmp_path)
    loaded, shape = load(name), shape_for(name, ModelRef(target=name))
    assert shape.weights_bytes("float32") == loaded.weights_bytes
    prompt_BT = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    found = open_session(cell("baseline", prompt=20, length=5), loaded, None).generate(prompt_BT, 5, Heard())
    assert found.ids_BT.shape == (1, 5)
    assert loaded.model(input_ids=prompt_BT).logits.isfinite().all()


@pytest.mark.parametrize(
    ("quantization", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install -U bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "pip install optimum"),
        ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "pip install compressed-tensors"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "pip install torchao"),
        ({"quant_method": "aqlm"}, "pip install aqlm"),
        ({"quant_method": "auto-round", "bits": 4}, "pip install 'auto-round"),
        ({"quant_method": "eetq"}, "pip install kernels"),
        ({"quant_method": "fouroversix"}, "pip install fouroversix"),
        ({"quant_method": "hqq"}, "A valid HQQ version"),
        ({"quant_method": "quanto", "weights": "int8"}, "pip install optimum-quanto"),
        ({"quant_method": "sinq"}, "pip install sinq"),
        ({"quant_method": "vptq"}, "pip install -U vptq"),
    ],
)
def test_quantised_weights_whose_package_is_missing_name_it(
    tmp_path: Path, quantization: dict[str, object], package: str
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(Unavailable) as raised:
        load(tmp_path)
    message = str(raised.value)
    assert f"quantised with {quantization['quant_method']}; a package is missing" in message
    assert package in message
    assert "\n" not in message


#: What config a method cannot do without, where it is more than its name.
_FIELDS: dict[str, dict[str, object]] = {
    "quark": {
        "export": {
            "kv_cache_group": [],
            "pack_method": "reorder",
            "weight_format": "real_quantized",
            "min_kv_scale": 0.0,
        }
    },
    "higgs": {"bits": 4, "p": 2},
}


@pytest.mark.parametrize("method", sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
def test_every_quantiser_of_transformers_loads_or_is_refused_in_one_line(tmp_path: Path, method: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = {"quant_method": method.partition("_4bit")[0].partition("_8bit")[0], "bits": 4}
    quantization |= _FIELDS.get(method, {})
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    told = ""
    try:
        load(tmp_path)
    except (LoadError, Unavailable) as error:
        told = str(error)
    assert "\n" not in told


def test_shards_are_those_that_the_index_names(tmp_path: Path) -> None:
    """Whatever they are called; what lies beside them is not read."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for number, shard in enumerate(sorted(set(content["weight_map"].values()))):
        (tmp_path / shard).rename(tmp_path / f"part_{number}.safetensors")
        content["weight_map"] = {
            name: f"part_{number}.safetensors" if file == shard else file
            for name, file in content["weight_map"].items()
        }
    index.write_text(json.dumps(content))
    (tmp_path / "consolidated.safetensors").write_bytes(b"other")
    loaded = load(tmp_path)
    for mine, true in zip(loaded.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, true)
    (tmp_path / "part_1.safetensors").unlink()
    with pytest.raises(
        LoadError, match=r"names \d files, 1 of which are not there, part_1.safetensors among them"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("told", "read"),
    [
        (7, {7}),
        ([2, 7], {2, 7}),
        (None, set()),
        (-1, set()),
        ([5, VOCAB], {5}),
        (VOCAB + 40, set()),
        ([], set()),
    ],
)
def test_ids_that_end_a_text_are_those_of_the_vocabulary(
    tmp_path: Path, told: object, read: set[int]
) -> None:
    loaded = load(random_with_eos(tmp_path, told))
    assert loaded.eos_ids == read


def random_with_eos(folder: Path, told: object) -> str:
    content = tiny_config("llama").to_dict() | {"eos_token_id": told}
    (folder / "config.json").write_text(json.dumps(content))
    return f"random:{folder}"


def test_no_end_of_text_forbids_no_token(tmp_path: Path) -> None:
    """-1 says that there is none. Read as an index, it forbade the last token of the vocabulary."""
    loaded = load(random_with_eos(tmp_path, -1))
    head = loaded.model.get_output_embeddings()
    with torch.no_grad():  # every choice is the last token
        head.weight.zero_()
        loaded.model.model.norm.register_forward_hook(lambda module, args, output: output.abs() + 1)
        head.weight[-1] = 1
    prompt_BT = torch.ones(1, 4, dtype=torch.long)
    found = open_session(cell("baseline", prompt=4, length=3), loaded, None).generate(prompt_BT, 3, Heard())
    assert found.ids_BT.tolist() == [[VOCAB - 1] * 3]
    assert found.eos_at is None


@pytest.mark.parametrize("family", ["bert", "roberta", "big_bird"])
def test_a_model_that_reads_in_both_directions_is_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(LoadError, match=r"reads in both directions \(`is_decoder` is false in its config\)"):
        load(random(family, tmp_path, is_decoder=False))
    tiny_config(family).save_pretrained(tmp_path)
    model = load(f"random:{tmp_path}").model
    ids_BT = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model(ids_BT).logits[:, :7], model(ids_BT[:, :7]).logits, atol=1e-5)


def test_a_causal_model_that_transformers_lists_elsewhere_is_loaded(tmp_path: Path) -> None:
    model = from_config(tiny_config("mistral4"), torch.float32)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path).model
    assert type(loaded).__name__ == "Mistral4ForCausalLM"
    ids_BT = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids_BT).logits, model.eval()(input_ids=ids_BT).logits)


def test_an_encoder_decoder_is_no_causal_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="'t5gemma2' is no causal language model"):
        load(random("t5gemma2", tmp_path))
