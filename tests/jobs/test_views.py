"""`oomline plan` and `oomline status` for a person: names are shown as they are."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

import pytest

from jobs.plan_view import print_plan
from jobs.status_view import print_status
from orchestrator.forecast import forecast
from orchestrator.journal.folder import open_run
from orchestrator.spec import BoundarySpec, ModelSpec, SweepSpec
from orchestrator.status import DeviceStatus, read_status
from tests.orchestrator.fake_run import demo_spec
from tests.workers.host.cells import gpt_neox

NAMES = ["[/]", "[bold]x", "[red", "[link=x]y"]


@pytest.mark.parametrize("name", NAMES)
def test_plan_shows_a_name_that_is_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    target = gpt_neox(Path(name) / "model")
    spec = SweepSpec(
        name="marked",
        models=[ModelSpec(target=target, draft=target, dtype=dtype) for dtype in ("float32", "bfloat16")],
        modes=["baseline+spec"],
        lengths=[500],
    )
    print_plan(spec, forecast(spec, f"X {name}:80GiB"))
    said = capsys.readouterr().out
    assert f" X {name}" in said
    assert f", draft {target}" in said
    assert f"{target} was trained on 128 positions" in said
    for dtype in ("float32", "bfloat16"):
        assert f"{target} ({dtype}) on " in said


def test_plan_says_what_its_time_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    known = ModelSpec(target=gpt_neox(tmp_path / "model"), dtype="float32")
    unknown = ModelSpec(target=str(damaged), dtype="float32")

    def first_line(*models: ModelSpec, boundary: BoundarySpec | None = None) -> str:
        spec = SweepSpec(name="s", models=list(models), modes=["baseline"], lengths=[500], boundary=boundary)
        print_plan(spec, forecast(spec, "cpu"))
        return capsys.readouterr().out.splitlines()[0]

    assert re.fullmatch(r"s: 1 cells, at most about .* on one cpu", first_line(known))
    assert first_line(known, boundary=BoundarySpec()).endswith("on one cpu, without the search's probes")
    assert first_line(known, unknown).endswith("on one cpu, without what cannot be predicted")
    assert first_line(unknown) == "s: 1 cells, of which no time can be predicted"


@pytest.mark.parametrize("name", NAMES)
def test_status_shows_a_name_that_is_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    open_run(tmp_path, demo_spec()).close()
    device = DeviceStatus(uuid=f"u{name}", kind=f"k{name}", node=f"n{name}", attempts=1, last_ended_s_ago=1.0)
    status = dataclasses.replace(
        read_status(str(tmp_path)),
        name=name,
        note=f"stopped: {name}",
        devices=(device,),
        set_aside=(f"part{name}",),
    )
    print_status(status)
    said = capsys.readouterr().out
    for words in (
        f"{name} is ",
        f"stopped: {name}",
        f"u{name}",
        f"k{name}",
        f"n{name}",
        f"aside: part{name}",
    ):
        assert words in said


@pytest.mark.parametrize("reach", ["decode", "prefill"])
def test_plan_says_that_a_search_by_prompts_ends_elsewhere(
    capsys: pytest.CaptureFixture[str], reach: Literal["decode", "prefill"]
) -> None:
    spec = demo_spec(lengths=[500], modes=["baseline"], boundary=BoundarySpec(reach=reach))
    print_plan(spec, forecast(spec, "cpu:12GiB"))
    said = " ".join(capsys.readouterr().out.split())
    assert ("the report's prediction of it, lie a little lower" in said) is (reach == "prefill")
