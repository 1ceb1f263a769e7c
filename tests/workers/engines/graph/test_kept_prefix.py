"""What several prompts begin with is read once, and every answer is the one of a prompt that is read whole."""

import pytest
import torch

from tests.workers.engines import layer_by_layer
from tests.workers.engines.eager.tiny import loaded
from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.cell import Cell
from workers.engines.graph import open_session
from workers.models.load import LoadedModel

PREFIX, PROMPT, NEW, BATCH = 150, 200, 20, 3


def _tokens_read(heard: Heard) -> int:
    return heard.read[-1] - heard.read[0]


def _prompts(vocabulary: int, batch: int, seed: int) -> torch.Tensor:
    """All that are asked for begin alike, whatever the seed."""
    ids_BT = tokens(PROMPT, batch=batch, seed=seed) % vocabulary
    ids_BT[:, :PREFIX] = tokens(PREFIX) % vocabulary
    return ids_BT


def _same_answers(asked: Cell, target: LoadedModel, draft: LoadedModel | None = None) -> None:
    batch = asked.batch_size
    whole, sharing = open_session(asked, target, draft), open_session(asked, target, draft)
    sharing.keep((tokens(PREFIX) % target.vocab_size)[0])
    for seed in (1, 2):  # the second, after the first went on from the prefix
        prompt_BT, heard = _prompts(target.vocab_size, batch, seed), Heard()
        answer = sharing.generate(prompt_BT, NEW, heard).ids_BT
        assert torch.equal(answer, whole.generate(prompt_BT, NEW, Heard()).ids_BT)
        assert _tokens_read(heard) == PROMPT - PREFIX
    other_BT = tokens(PROMPT, batch=batch, seed=3) % target.vocab_size
    heard = Heard()
    answer = sharing.generate(other_BT, NEW, heard).ids_BT
    assert torch.equal(answer, whole.generate(other_BT, NEW, Heard()).ids_BT)
    assert _tokens_read(heard) == PROMPT  # of a prompt that begins otherwise nothing is kept


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("mode", ["baseline", "streaming", "window"])
def test_answers_are_those_of_prompts_that_are_read_whole(mode: str, kv_dtype: str) -> None:
    asked = cell(mode, window=70, kv_dtype=kv_dtype, batch_size=BATCH)
    _same_answers(asked, build("llama", torch.float64, layers=2))


@pytest.mark.parametrize("chunk", [None, 37])
def test_answers_are_the_same_in_chunks_and_with_a_draft(chunk: int | None) -> None:
    draft = build("llama", torch.float64, seed=1, layers=1)
    asked = cell("streaming+spec", window=70, prefill_chunk=chunk)
    _same_answers(asked, build("llama", torch.float64, layers=2), draft)


def test_answers_are_the_same_where_layers_have_windows_of_their_own() -> None:
    target = loaded(layer_by_layer.build("gemma3_text"))
    _same_answers(layer_by_layer.cell("baseline", "graph"), target)
