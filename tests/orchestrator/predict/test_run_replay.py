"""A whole run through the allocator model: against an H100's out-of-memory, and by its own rules."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.rehearsed.passes import RehearsedPasses
from orchestrator.predict.rehearsed.run import Course, RunOutcome, RunReplay
from tests.benchmarks.prediction.shapes import benchmark_shapes
from workers.cell import Cell, ModelRef
from workers.rehearsal.eager import EagerRehearsal

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


def run(passes: RehearsedPasses, allowed: int | None, **fields: object) -> RunOutcome:
    course = dataclasses.replace(
        Course(prompt_tokens=256, new_tokens=8, chunk=128, batch_size=1),
        **fields,  # type: ignore[arg-type]
    )
    return RunReplay(passes, CachingAllocator(allowed_bytes=allowed), ()).run(course)


@pytest.mark.parametrize(("allocator", "passes_that_fitted"), [("default", 50), ("expandable", 66)])
def test_a_prompt_runs_out_of_memory_in_the_pass_in_which_the_card_did(
    tmp_path: Path, allocator: str, passes_that_fitted: int
) -> None:
    shape = next(shape for shape in benchmark_shapes() if shape.name == "lfm2-1.2b")
    cell = dataclasses.replace(CELL, model=ModelRef(target=shape.write(tmp_path)), prefill_chunk=1024)
    with np.load(RECORDED) as content:
        key = f"lfm2-1.2b/baseline/{allocator}/5GiB"
        allowed, real = int(content[f"{key}/allowed"][0]), content[f"{key}/reserved"].tolist()
        passes = len(content[f"{key}/marks"])
    model = CachingAllocator(AllocatorSettings(expandable_segments=allocator == "expandable"), allowed)
    replay = RunReplay(RehearsedPasses(EagerRehearsal(cell), 1024), model, (32 * MiB,))
    outcome = replay.run(Course(prompt_tokens=2**17, new_tokens=1, chunk=1024, batch_size=1))
    assert (outcome.failed_in, outcome.reached) == ("prefill", passes_that_fitted * 1024)
    assert passes == passes_that_fitted + 1
    assert outcome.peak_reserved == pytest.approx(max(real), rel=1e-4)


def test_a_run_that_fits_ends_and_one_byte_less_than_its_peak_does_not(pythia: RehearsedPasses) -> None:
    whole = run(pythia, None)
    assert whole.failed_in is None
    assert whole.peak_allocated <= whole.peak_reserved
    assert run(pythia, whole.peak_reserved).failed_in is None
    least = whole.weights_bytes + whole.kv_bytes
    assert run(pythia, least).failed_in is not None
    assert run(pythia, whole.weights_bytes - 1).failed_in == "load"


def test_a_longer_run_fits_no_smaller_card(pythia: RehearsedPasses) -> None:
    reached = [run(pythia, allowed * MiB, new_tokens=None).reached for allowed in (60, 70, 80)]
    assert reached == sorted(reached)
    assert 0 < reached[0] < reached[-1]
    again = run(pythia, 70 * MiB, new_tokens=reached[1])
    assert again.failed_in is None
    longer = run(pythia, 70 * MiB, new_tokens=int(reached[1] * 1.01) + 1)
    assert (longer.failed_in, longer.reached) == ("decode", pytest.approx(reached[1], rel=0.002))


@pytest.mark.parametrize("expandable", [False, True])
def test_steps_that_are_skipped_make_no_difference(
    pythia: RehearsedPasses, expandable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AllocatorSettings(expandable_segments=expandable)
    course = Course(prompt_tokens=256, new_tokens=None, chunk=128, batch_size=1)

    def reached() -> list[int]:
        allocators = [CachingAllocator(settings, allowed * MiB) for allowed in (80,)]
        return [RunReplay(pythia, allocator, ()).run(course).reached for allocator in allocators]

    skipped = reached()
    monkeypatch.setattr("orchestrator.predict.rehearsed.run._STRIDE", 0)
    monkeypatch.setattr("orchestrator.predict.rehearsed.run._WHOLE", 1)
    assert skipped == pytest.approx(reached(), rel=0.005)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_ends_where_its_caches_fill_the_card(batch: int) -> None:
    passes = RehearsedPasses(EagerRehearsal(dataclasses.replace(CELL, batch_size=batch)), 128)
    outcome = run(passes, 90 * MiB, new_tokens=None, batch_size=batch)
    per_token = batch * 2 * 6 * 128 * 2
    assert outcome.failed_in == "decode"
    assert outcome.kv_bytes <= 90 * MiB - outcome.weights_bytes
    assert outcome.reached * per_token == pytest.approx(outcome.kv_bytes, rel=0.25)
