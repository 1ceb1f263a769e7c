"""Every mode in every engine and workload that has it: planned, predicted, run in a child process on a CPU, reported.

The list is that of `workers.modes`: a policy or a decoder that is added there is tested here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import cache_bytes, predict
from orchestrator.predict.shape import shape_for
from orchestrator.report import render
from orchestrator.spec import ModelSpec, RetrieveSpec, SpeculationSpec, StreamingSpec, SweepSpec
from tests.workers.host import cells
from workers.attempt import Attempt
from workers.cell import Cell, Lease
from workers.host.device_host import DeviceHost
from workers.modes import MODES, POLICIES, WORKLOADS
from workers.outcome import Outcome

GiB = 2**30
LENGTH = 60  # beyond the window
CASES = [
    (workload, name, engine)
    for workload in WORKLOADS
    for name, mode in MODES.items()
    if workload in mode.workloads
    for engine in sorted(mode.engines)
]


@dataclass(frozen=True)
class Swept:
    """What came of one workload's cells, by mode and engine. `report`: its Markdown."""

    attempts: dict[tuple[str, str], Attempt]
    profile: DeviceProfile
    report: str


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Swept]]:
    folder = tmp_path_factory.mktemp("modes")
    model = cells.gpt_neox(folder / "model")
    host = DeviceHost("node/cpu0", GiB)
    yield {workload: _sweep(host, model, workload, folder / workload) for workload in WORKLOADS}
    host.close()


def _sweep(host: DeviceHost, model: str, workload: str, folder: Path) -> Swept:
    spec = SweepSpec(
        name="modes",
        models=[ModelSpec(target=model, draft=model, dtype="float32", attn_implementation="sdpa")],
        modes=[name for name, mode in MODES.items() if workload in mode.workloads],
        workload=workload,
        retrieve=RetrieveSpec(depths=2, samples=1),
        lengths=[LENGTH],
        prompt_tokens=[1],
        streaming=StreamingSpec(sinks=4, window=24),
        speculation=SpeculationSpec(gamma=3),
    )
    asked: list[Cell] = []
    for engine in ("eager", "graph"):
        modes = [name for name in spec.modes if engine in MODES[name].engines]
        asked += expand(spec.model_copy(update={"engines": [engine], "modes": modes}))
    attempts = [
        host.run(Lease(lease_id=f"run.{n}", cell=cell, attempt=1, time_limit_s=60, stall_timeout_s=30))
        for n, cell in enumerate(asked)
    ]
    with open_run(folder, spec) as run:
        run.plan(len(asked))
        run.devices([host.describe()])
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        run.finish("finished")
    report = Path(render(folder)).read_text()
    profile = DeviceProfile.of(host.describe(), attempts[0].context_bytes)
    return Swept({(a.cell.mode, a.cell.engine): a for a in attempts}, profile, report)


@pytest.mark.parametrize(("workload", "mode", "engine"), CASES)
def test_a_mode_does_what_it_says_of_itself(
    sweeps: dict[str, Swept], workload: str, mode: str, engine: str
) -> None:
    sweep = sweeps[workload]
    attempt, asked = sweep.attempts[mode, engine], MODES[mode]
    cell, measured = attempt.cell, attempt.measured

    # Planned: only what the mode reads is in the cell.
    assert (cell.streaming is not None) == (asked.policy.parameters is not None)
    assert (cell.speculation is not None) == (asked.decoder.parameters is not None)
    assert (cell.model.draft is not None) == asked.decoder.needs_draft

    # Run: to its length, with what the policy asks for in effect.
    assert attempt.outcome is Outcome.OK, attempt.failure
    assert measured.new_tokens == LENGTH
    assert measured.in_effect is not None
    assert (measured.in_effect.sinks, measured.in_effect.window) == (
        asked.policy.context(cell.streaming) or (None, None)
    )
    if asked.decoder.matches_plain:
        plain = sweep.attempts[asked.plain, engine]
        assert (attempt.output_ids, attempt.results) == (plain.output_ids, plain.results)

    # Predicted: growth where it says so, and the bytes of the live cache.
    shape = shape_for(cell.model.target, cell.model)
    draft = shape if asked.decoder.needs_draft else None
    prediction = predict(cell, shape, draft, sweep.profile, loaded=True)
    assert (prediction.bytes_per_token > 0) == asked.policy.grows
    kv_bytes = prediction.kv_bytes
    if prediction.moment != "decode":  # the prompt is the hungriest, and the cache is read at the end
        positions = cell.workload_spec.positions(cell)
        kv_bytes = sum(cache_bytes(cell, one, positions) for one in (shape, draft) if one is not None)
    if asked.decoder.verifies and asked.policy.grows:  # what is rejected last is in the prediction only
        assert measured.kv_cache_bytes <= kv_bytes
    else:
        assert measured.kv_cache_bytes == kv_bytes


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_mode_is_reported(sweeps: dict[str, Swept], workload: str) -> None:
    sweep = sweeps[workload]
    for mode, _ in sweep.attempts:
        assert mode in sweep.report.split("## How it was measured")[0]


def test_every_policy_has_a_curve_of_its_own_colour() -> None:
    assert len({policy.colour for policy in POLICIES.values()}) == len(POLICIES)
