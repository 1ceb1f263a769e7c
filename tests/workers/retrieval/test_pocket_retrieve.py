"""The shipped model finds everything in its context; a mode that drops tokens finds what it kept, in any batch and engine."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.engines.session import Unmeasured
from workers.host.child.workloads.retrieve import shared_beginning
from workers.models.load import LoadedModel, load_model
from workers.modes import Retrieve, Streaming
from workers.retrieval.prompts import trials
from workers.retrieval.tasks import TASKS, is_right
from workers.text.corpus import decode
from workers.text.prompts import prompt_ids

REF = ModelRef(target="pocket-retrieve", dtype="float32")
DEPTHS, SAMPLES, SINKS, WINDOW = 5, 4, 4, 252


@cache
def _model() -> LoadedModel:
    return load_model(REF.target, REF, torch.device("cpu"))


def _cell(
    mode: str, length: int, engine: str = "eager", batch: int = SAMPLES, chunk: int | None = None
) -> Cell:
    return Cell(
        model=REF,
        mode=mode,
        engine=engine,  # type: ignore[arg-type]
        workload="retrieve",
        prompt_tokens=length,
        length=length,
        batch_size=batch,
        prefill_chunk=chunk,
        streaming=None if mode == "baseline" else Streaming(sinks=SINKS, window=WINDOW),
        retrieve=Retrieve(task="single", depths=DEPTHS, samples=SAMPLES),
    )


def _answers(cell: Cell, *, share: bool = False) -> list[list[int]]:
    session = open_session(cell, _model(), None)
    prompts_NT = torch.from_numpy(prompt_ids(cell)).long().view(-1, cell.length)
    answers: list[list[int]] = []
    assert cell.retrieve is not None
    for depth_NT in prompts_NT.split(cell.retrieve.samples):
        if share:
            session.keep(shared_beginning(depth_NT))
        for prompt_BT in depth_NT.split(cell.batch_size):
            new_tokens = cell.workload_spec.new_tokens(cell)
            answers += session.generate(prompt_BT, new_tokens, Unmeasured()).ids_BT.tolist()
    return answers


def _right(cell: Cell) -> dict[float | None, float]:
    """Share of right answers by depth."""
    found: dict[float | None, float] = {}
    asked = trials("single", DEPTHS, SAMPLES, cell.seed)
    for trial, text in zip(asked, decode(_answers(cell), REF.target, REF), strict=True):
        found[trial.place] = found.get(trial.place, 0.0) + is_right(text, trial.expected) / SAMPLES
    return found


@pytest.mark.parametrize("length", [300, 1024])
def test_a_full_cache_finds_it_at_every_depth(length: int) -> None:
    assert set(_right(_cell("baseline", length)).values()) == {1.0}


@pytest.mark.parametrize(
    ("engine", "batch", "chunk"),
    [("eager", SAMPLES, None), ("eager", 1, None), ("eager", SAMPLES, 50), ("graph", SAMPLES, None)],
)
def test_streaming_finds_it_in_its_window_and_nowhere_else(
    engine: str, batch: int, chunk: int | None
) -> None:
    """The needle at 75 % of 512 tokens is 128 tokens from the end, that at 50 % is 256 tokens from it."""
    found = _right(_cell("streaming", 512, engine, batch, chunk))
    assert found == {0.0: 0.0, 0.25: 0.0, 0.5: 0.0, 0.75: 1.0, 1.0: 1.0}


@pytest.mark.parametrize(
    ("mode", "batch"), [("baseline", 3), ("streaming", 1), ("streaming", 3), ("tova", 3), ("keydiff", 3)]
)
def test_a_beginning_that_is_read_once_changes_no_answer(mode: str, batch: int) -> None:
    cell = _cell(mode, 512, batch=batch)
    with Passes(_model().model) as counted:
        alone = _answers(cell)
        whole = counted.tokens()
        assert _answers(cell, share=True) == alone
        assert counted.tokens() < 0.75 * whole


#: What it answers whenever it sees the needle.
EASY = ("passkey", "single", "single-text")


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
@pytest.mark.parametrize("task", TASKS)
def test_no_answer_is_right_or_wrong_by_batch_chunk_or_engine(task: str, mode: str) -> None:
    """Of every task, with the beginnings that prompts share and without."""
    asked = Retrieve(task=task, depths=2, samples=2)
    plain = replace(_cell(mode, 360, batch=1), retrieve=asked)
    questions = trials(task, asked.depths, asked.samples, plain.seed)

    def right(cell: Cell, *, share: bool = False) -> list[bool]:
        texts = decode(_answers(cell, share=share), REF.target, REF)
        return [is_right(text, one.expected) for text, one in zip(texts, questions, strict=True)]

    expected = right(plain)
    if task in EASY:
        assert all(expected) if mode == "baseline" else not expected[0] and expected[-1]
    assert right(replace(plain, prefill_chunk=50)) == expected
    for engine in ("eager", "graph"):
        assert right(replace(plain, engine=engine, batch_size=2), share=True) == expected


class Passes:
    """Counts the tokens that a model reads."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._read = 0
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def __enter__(self) -> "Passes":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, module: torch.nn.Module, args: object, named: dict[str, torch.Tensor]) -> None:
        self._read += named["input_ids"].numel()

    def tokens(self) -> int:
        """Since the last call."""
        read, self._read = self._read, 0
        return read
