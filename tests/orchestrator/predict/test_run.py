"""A whole run through the allocator model: against an H100's out-of-memory, and by its own rules."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.rehearsed.passes import RehearsedPasses
from orchestrator.predict.rehearsed.run import RehearsedRun
from tests.benchmarks.prediction.shapes import benchmark_shapes
from workers.cell import Cell, ModelRef
from workers.rehearsal.eager import EagerRehearsal
from workers.rehearsal.passes import NotRehearsable

MiB = 2**20
RECORDED = Path(__file__).parent / "recorded" / "lfm2-1.2b-h100.npz"
CELL = Cell(
    model=ModelRef(target="random:pythia-14m"),
    mode="baseline",
    engine="eager",
    prompt_tokens=256,
    length=8,
    prefill_chunk=128,
)


@pytest.fixture(scope="module")
def pythia() -> RehearsedPasses:
    return RehearsedPasses(EagerRehearsal(CELL), 128)


#: More new tokens than any of these cards holds.
FAR = 2**22


def run(passes: RehearsedPasses, allowed: int | None, new_tokens: int = 8, **fields: int) -> RehearsedRun:
    asked = {"prompt_tokens": 256, "chunk": 128, "batch_size": 1, **fields}
    return RehearsedRun(passes, CachingAllocator(allowed_bytes=allowed), (), **asked).to(new_tokens)


def came_to(ended: RehearsedRun) -> int:
    assert ended.failure is not None
    assert ended.failure.phase == "decode"
    return ended.failure.tokens


@pytest.mark.parametrize(("allocator", "passes_that_fitted"), [("default", 50), ("expandable", 66)])
def test_a_prompt_runs_out_of_memory_in_the_pass_in_which_the_card_did(
    tmp_path: Path, allocator: str, passes_that_fitted: int
) -> None:
    shape = next(shape for shape in benchmark_shapes() if shape.name == "lfm2-1.2b")
    cell = dataclasses.replace(CELL, model=ModelRef(target=shape.write(tmp_path)), prefill_chunk=1024)
    with np.load(RECORDED) as content:
        key = f"lfm2-1.2b/baseline/{allocator}/5GiB"
        allowed, real = int(content[f"{key}/allowed"][0]), content[f"{key}/reserved"].tolist()
        forwards = len(content[f"{key}/marks"])
    model = CachingAllocator(AllocatorSettings(expandable_segments=allocator == "expandable"), allowed)
    passes = RehearsedPasses(EagerRehearsal(cell), 1024)
    ended = RehearsedRun(passes, model, (32 * MiB,), prompt_tokens=2**17, chunk=1024, batch_size=1).to(1)
    assert ended.failure is not None
    assert ended.failure == ("prefill", passes_that_fitted * 1024)
    assert forwards == passes_that_fitted + 1
    assert model.peak_reserved == pytest.approx(max(real), rel=1e-4)


def test_a_run_that_fits_ends_and_less_than_it_holds_does_not_do(pythia: RehearsedPasses) -> None:
    whole = run(pythia, None)
    assert whole.failure is None
    last = whole.points[-1]
    assert last.peak_allocated <= last.peak_reserved
    assert run(pythia, last.peak_reserved).failure is None
    tight = run(pythia, whole.weights_bytes + last.kv_bytes)
    assert tight.failure is not None
    unloaded = run(pythia, whole.weights_bytes - 1)
    assert unloaded.failure is not None
    assert unloaded.failure.phase == "load"


def test_a_longer_run_fits_no_smaller_card(pythia: RehearsedPasses) -> None:
    lengths = [came_to(run(pythia, allowed * MiB, FAR)) for allowed in (60, 70, 80)]
    assert lengths == sorted(lengths)
    assert 0 < lengths[0] < lengths[-1]
    assert run(pythia, 70 * MiB, lengths[1]).failure is None
    assert came_to(run(pythia, 70 * MiB, int(lengths[1] * 1.01) + 1)) == pytest.approx(lengths[1], rel=0.002)


def test_a_run_goes_on_where_it_was_left(pythia: RehearsedPasses) -> None:
    stepwise = run(pythia, 80 * MiB, 1)
    for new_tokens in (2, 3, 900, 2000):
        stepwise.to(new_tokens)
    assert stepwise.at(900).tokens == 900
    assert stepwise.at(900).peak_reserved <= stepwise.at(2000).peak_reserved
    assert stepwise.points[-1] == run(pythia, 80 * MiB, 2000).points[-1]


@pytest.mark.parametrize("expandable", [False, True])
def test_steps_that_are_skipped_make_no_difference(
    pythia: RehearsedPasses, expandable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AllocatorSettings(expandable_segments=expandable)

    def ends_at() -> int:
        allocator = CachingAllocator(settings, 80 * MiB)
        return came_to(
            RehearsedRun(pythia, allocator, (), prompt_tokens=256, chunk=128, batch_size=1).to(FAR)
        )

    skipped = ends_at()
    monkeypatch.setattr("orchestrator.predict.rehearsed.run._STRIDE", 0)
    monkeypatch.setattr("orchestrator.predict.rehearsed.run._WHOLE", 1)
    assert skipped == pytest.approx(ends_at(), rel=0.005)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_ends_where_its_caches_fill_the_card(batch: int) -> None:
    passes = RehearsedPasses(EagerRehearsal(dataclasses.replace(CELL, batch_size=batch)), 128)
    ended = run(passes, 90 * MiB, FAR, batch_size=batch)
    per_token = batch * 2 * 6 * 128 * 2
    kv_bytes = ended.points[-1].kv_bytes
    assert kv_bytes <= 90 * MiB - ended.weights_bytes
    assert came_to(ended) * per_token == pytest.approx(kv_bytes, rel=0.25)


def test_a_run_without_end_is_refused(pythia: RehearsedPasses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.predict.rehearsed.run._MOST_ALLOCATIONS", 1000)
    with pytest.raises(NotRehearsable, match="more than 1,000 times"):
        run(pythia, None, FAR)
