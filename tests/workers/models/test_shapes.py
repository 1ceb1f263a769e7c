"""The shipped shapes are those of the models they are named after."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from workers.cell import ModelRef
from workers.models.load import LoadError, check_draft, read_config
from workers.models.shapes import shapes

#: As published, or counted from the published checkpoints.
PUBLISHED = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "gemma-3-27b": 27_009_346_304,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "olmo-2-7b": 7_298_617_344,
    "phi-4": 14_659_507_200,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "smollm3-3b": 3_075_098_624,
}


@pytest.mark.parametrize("name", shapes())
def test_parameter_counts(name: str) -> None:
    config = read_config(f"random:{name}", ModelRef(target=name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == PUBLISHED.get(name, count) == shapes()[name]["parameters"]


def test_published_counts_are_of_shapes() -> None:
    assert set(PUBLISHED) <= set(shapes())


def config_of(name: str):  # type: ignore[no-untyped-def]
    return read_config(name, ModelRef(target=name))


@pytest.mark.parametrize("draft", ["pythia-160m", "pythia-410m"])
def test_drafts_that_share_the_vocabulary(draft: str) -> None:
    check_draft(config_of("random:pythia-2.8b"), config_of(f"random:{draft}"))
    check_draft(config_of("pocket"), config_of("pocket-draft"))


def test_padded_vocabularies_differ_and_both_sizes_are_named() -> None:
    with pytest.raises(LoadError, match=r"50304 entries, the target's 50432 \(padding included\)"):
        check_draft(config_of("random:pythia-6.9b"), config_of("random:pythia-160m"))


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(LoadError, match=r"the nearest shape is random:pythia-2\.8b"):
        config_of("random:pythia-2.8")
