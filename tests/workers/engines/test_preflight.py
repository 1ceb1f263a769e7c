"""What is refused before a model is read: nothing of it is asked, and no weight is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.host import cells
from tests.workers.host.cells import MiB
from workers.cell import Cell, ModelRef
from workers.engines.eager import stored
from workers.engines.preflight import refuse_by_config, refuse_by_machine
from workers.engines.session import ModeUnsupported
from workers.host.device_host import DeviceHost
from workers.modes import Streaming
from workers.outcome import Outcome

NOWHERE = Cell(
    model=ModelRef(target="nowhere"),
    mode="baseline",
    engine="eager",
    prompt_tokens=4,
    length=8,
    kv_dtype="fp8",
)
STREAMING = replace(NOWHERE, mode="streaming", streaming=Streaming(sinks=2, window=6))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (STREAMING, "keeps its cache itself"),
        (replace(NOWHERE, kv_placement="host"), "both quantised and offloaded"),
        (replace(NOWHERE, mode="baseline+spec"), "take back a rejected token"),
        (replace(NOWHERE, engine="graph", kv_placement="host"), "leave out kv_placement"),
    ],
)
def test_caches_that_no_model_has(cell: Cell, words: str) -> None:
    with pytest.raises(ModeUnsupported, match=words):
        refuse_by_config(cell)


def test_caches_that_some_model_has() -> None:
    known = replace(STREAMING, engine="graph", model=ModelRef(target="random:pythia-14m"))
    for cell in (NOWHERE, replace(NOWHERE, kv_dtype="auto"), known):
        refuse_by_config(cell)
        refuse_by_machine(cell)


@pytest.mark.parametrize(
    ("model", "words"),
    [("qwen3.5-27b", "model type qwen3_5"), ("phi-4", None), ("deepseek-v2-lite", None)],
)
def test_models_that_the_graph_engine_lacks(model: str, words: str | None) -> None:
    cell = replace(NOWHERE, engine="graph", kv_dtype="auto", model=ModelRef(target=f"random:{model}"))
    if words is None:
        refuse_by_config(cell)
        return
    with pytest.raises(ModeUnsupported, match=words):
        refuse_by_config(cell)
    refuse_by_config(replace(cell, engine="eager"))


def test_a_package_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_is_there", lambda module: False)
    with pytest.raises(ModeUnsupported, match=r"not installed: hqq$"):
        refuse_by_machine(replace(NOWHERE, kv_dtype="int8"))
    refuse_by_machine(replace(NOWHERE, kv_dtype="int8", engine="graph"))


def test_a_child_refuses_before_it_loads(tmp_path: Path) -> None:
    host = DeviceHost("node/cpu0", 512 * MiB)
    try:
        lease = cells.lease(cells.gpt_neox(tmp_path / "model"))
        cell = replace(lease.cell, mode="streaming", streaming=STREAMING.streaming, kv_dtype="fp8")
        attempt = host.run(replace(lease, cell=cell))
    finally:
        host.close()
    assert attempt.outcome is Outcome.LOAD_ERROR
    assert attempt.failure is not None
    assert "keeps its cache itself" in attempt.failure.error_message
    assert attempt.measured.weights_bytes is None
