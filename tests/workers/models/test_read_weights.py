"""The bytes of weights that a step reads, above all of mixtures of experts."""

from dataclasses import replace

import pytest
import torch

from tests.workers.engines.eager.tiny import loaded
from tests.workers.models.families import tiny_model
from workers.cell import Cell, ModelRef
from workers.models.read_weights import step_weights_bytes
from workers.modes import Speculation

CELL = Cell(
    model=ModelRef(target="tiny", draft="tiny"), mode="baseline", engine="eager", prompt_tokens=4, length=8
)
DRAFTED = replace(CELL, mode="baseline+spec", speculation=Speculation(gamma=3))


@pytest.mark.parametrize(
    ("family", "experts"), [("mixtral", 4), ("qwen3_moe", 4), ("gpt_oss", 4), ("deepseek_v3", 12)]
)
def test_a_token_reads_the_experts_that_it_chooses(family: str, experts: int) -> None:
    """Two of each layer's. What else a model has (a shared expert, a layer without experts) is read whole."""
    model = tiny_model(family)
    named = dict(model.named_parameters())
    of_experts = {name: weight for name, weight in named.items() if ".experts." in name}
    assert {len(weight) for weight in of_experts.values()} == {experts}
    table = named["model.embed_tokens.weight"]
    read = sum(weight[:2].nbytes if name in of_experts else weight.nbytes for name, weight in named.items())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert step_weights_bytes(CELL, loaded(model), None) == read + buffers - table.nbytes


def test_nobody_knows_which_experts_several_tokens_share() -> None:
    mixture, dense = loaded(tiny_model("mixtral")), loaded(tiny_model("llama"))
    assert step_weights_bytes(replace(CELL, batch_size=2), mixture, None) is None
    assert step_weights_bytes(DRAFTED, mixture, dense) is None
    assert step_weights_bytes(DRAFTED, dense, mixture) is None


def test_a_model_without_experts_is_read_whole_whatever_the_tokens() -> None:
    dense = loaded(tiny_model("llama"))
    once = step_weights_bytes(CELL, dense, None)
    assert once is not None
    assert step_weights_bytes(replace(CELL, batch_size=2), dense, None) == once
    assert step_weights_bytes(DRAFTED, dense, dense) == 4 * once


def test_where_a_choice_may_be_no_expert_at_all_nobody_knows() -> None:
    """Zaya's router has a score more than there are experts."""
    assert step_weights_bytes(CELL, loaded(tiny_model("zaya")), None) is None


def test_experts_as_modules_are_counted_alike() -> None:
    model = tiny_model("mixtral")
    fused = model.model.layers[0].mlp.experts
    expected = step_weights_bytes(CELL, loaded(model), None)
    apart = torch.nn.ModuleList()
    for gate_up, down in zip(fused.gate_up_proj, fused.down_proj, strict=True):
        apart.append(torch.nn.ParameterList([gate_up.detach().clone(), down.detach().clone()]))
    model.model.layers[0].mlp.experts = apart
    assert step_weights_bytes(CELL, loaded(model), None) == expected
