import dataclasses
import json
from pathlib import Path

import pytest

from jobs.compare_view import compare_command
from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.report import compare
from orchestrator.spec import SpeculationSpec
from orchestrator.spec_error import SpecError
from tests.orchestrator.fake_run import CPU, MiB, demo_attempts, demo_spec
from workers.attempt import Attempt
from workers.outcome import Outcome


def _write(folder: Path, attempts: list[Attempt]) -> Path:
    with open_run(folder, demo_spec(repeats=3, lengths=[500, 4000])) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
    return folder


def _faster(attempt: Attempt, factor: float, memory: float) -> Attempt:
    speed = attempt.measured.tokens_per_s
    measured = dataclasses.replace(attempt.measured, tokens_per_s=speed and speed * factor)
    return dataclasses.replace(
        attempt, measured=measured, peak_device_bytes=int((attempt.peak_device_bytes or 0) * memory)
    )


def _row(text: str, section: str, what: str) -> str:
    lines = text.split(f"## {section}")[1].split("## ")[0].splitlines()
    return next(line for line in lines if line.startswith(f"| {what}"))


def test_only_what_exceeds_the_noise_is_called_a_difference(tmp_path: Path) -> None:
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))
    changed = [
        _faster(a, 1.5, 0.8) if a.cell.mode == "streaming" else _faster(a, 1.001, 1.0005) for a in attempts
    ]
    text = compare([_write(tmp_path / "a", attempts), _write(tmp_path / "b", changed)])

    assert _row(text, "Speed", "pocket streaming, eager, 64 MiB, 64 + 500").endswith("| yes: 1.50× |")
    assert _row(text, "Speed", "pocket baseline, eager, 64 MiB, 64 + 500").endswith("| no (1.00×) |")
    assert _row(text, "Peak memory", "pocket streaming, eager, 64 MiB, 64 + 500").endswith("| yes: -20.0 % |")
    assert _row(text, "Peak memory", "pocket baseline, eager, 64 MiB, 64 + 500").endswith("| no |")
    assert _row(text, "Boundaries", "pocket baseline, eager").endswith("| 500 | 500 | no |")
    assert _row(text, "Boundaries", "pocket streaming, eager").endswith("| ≥ 4,000 | ≥ 4,000 | no |")


def test_a_boundary_that_moved_out_of_its_bracket_is_a_difference(tmp_path: Path) -> None:
    spec = demo_spec(repeats=3, lengths=[500, 4000])
    attempts = demo_attempts(spec)
    roomy = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000], budgets=[None]))
    passed = [
        dataclasses.replace(wide, cell=narrow.cell, lease_id=narrow.lease_id)
        for wide, narrow in zip(roomy, attempts, strict=True)
    ]
    text = compare([_write(tmp_path / "a", attempts), _write(tmp_path / "b", passed)])
    assert _row(text, "Boundaries", "pocket baseline, eager").endswith("| 500 | ≥ 4,000 | yes |")
    assert _row(text, "Speed", "pocket baseline, eager, 64 MiB, 64 + 4,000").endswith("| yes: the outcome |")


def test_one_repeat_cannot_tell(tmp_path: Path) -> None:
    attempts = [a for a in demo_attempts(demo_spec(repeats=3, lengths=[500, 4000])) if a.cell.repeat == 0]
    text = compare([_write(tmp_path / "a", attempts), _write(tmp_path / "b", attempts)])
    assert _row(text, "Speed", "pocket baseline, eager, 64 MiB, 64 + 500").endswith(
        "| cannot tell (1.00×): one repeat |"
    )


def test_what_differs_in_the_setup_comes_first_and_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    """Another gamma is another mode: its boundary is not held against the first one's."""
    for name, gamma, budgets in (("a", 4, [64 * MiB]), ("b", 2, [64 * MiB, 48 * MiB])):
        spec = demo_spec(lengths=[500], speculation=SpeculationSpec(gamma=gamma), budgets=budgets)
        with open_run(tmp_path / name, spec) as run:
            run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
    text = compare([tmp_path / "a", tmp_path / "b"])
    setup, _, rest = text.partition("## Boundaries")
    assert "sweep file: speculation.gamma: 4 in A, 2 in B" in setup
    assert "sweep file: budgets:" in setup
    assert "only in B" in setup
    boundaries = rest.split("## Speed")[0]
    assert "| pocket baseline+spec" not in boundaries
    for label in ("A", "B"):
        assert f"only in {label}: pocket baseline+spec" in boundaries
    assert "only in B: pocket baseline, eager, 48 MiB, decode" in boundaries


def test_equal_setups_are_said_to_be_equal(tmp_path: Path) -> None:
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))
    text = compare([_write(tmp_path / "a", attempts), _write(tmp_path / "b", attempts)])
    assert "Nothing: the same sweep file, device and versions." in text


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ("speed:5%", {"speed"}),
        ("memory:1%", {"memory"}),
        ("speed:60%,memory:50%", set()),
        ("boundary:0%", set()),
        ("boundary:2%,speed:5%,memory:1%", {"speed", "memory"}),
    ],
)
def test_only_what_is_worse_beyond_limit_and_noise_fails(
    tmp_path: Path, limits: str, failed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))
    slower = [
        _faster(a, 0.6, 1.2) if a.cell.mode == "streaming" else _faster(a, 0.999, 1.0005) for a in attempts
    ]
    folders = [str(_write(tmp_path / "a", attempts)), str(_write(tmp_path / "b", slower))]
    status = compare_command(folders, as_json=True, fail_on=limits, out=None)
    told = json.loads(capsys.readouterr().out)
    assert status == int(bool(failed))
    assert {words.partition(" ")[0] for words in told["worse"]} == failed
    assert all("streaming" in words for words in told["worse"])
    # The other way round everything became better.
    assert compare_command(folders[::-1], as_json=True, fail_on=limits, out=None) == 0


def test_one_repeat_and_a_wrong_limit_fail_nothing(tmp_path: Path) -> None:
    attempts = [a for a in demo_attempts(demo_spec(repeats=3, lengths=[500, 4000])) if a.cell.repeat == 0]
    slower = [_faster(a, 0.5, 1.0) for a in attempts]
    folders = [str(_write(tmp_path / "a", attempts)), str(_write(tmp_path / "b", slower))]
    assert compare_command(folders, as_json=True, fail_on="speed:5%", out=None) == 0
    with pytest.raises(SpecError, match="'speed:5' is not QUANTITY:PERCENT%"):
        compare_command(folders, as_json=True, fail_on="speed:5", out=None)


def test_a_lost_boundary_is_worse(tmp_path: Path) -> None:
    spec = demo_spec(repeats=3, lengths=[500, 4000])
    attempts = demo_attempts(spec)
    roomy = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000], budgets=[None]))
    passed = [
        dataclasses.replace(wide, cell=narrow.cell, lease_id=narrow.lease_id)
        for wide, narrow in zip(roomy, attempts, strict=True)
    ]
    folders = [str(_write(tmp_path / "a", passed)), str(_write(tmp_path / "b", attempts))]
    assert compare_command(folders, as_json=False, fail_on="boundary:2%", out=tmp_path / "pages") == 1
    page = (tmp_path / "pages/compare.html").read_text()
    assert "Worse than allowed" in page
    assert page.count("<figure") == 2
    assert {path.name for path in (tmp_path / "pages/plots").iterdir()} == {
        *("compare-boundaries.svg", "compare-boundaries.png", "compare-speed.svg", "compare-speed.png")
    }


def _ended(attempts: list[Attempt], outcome: Outcome) -> list[Attempt]:
    """The same, but what ran out of memory ended otherwise."""
    return [dataclasses.replace(a, outcome=outcome) if a.outcome.is_device_oom else a for a in attempts]


def test_a_speed_that_no_side_has_is_not_lost(tmp_path: Path) -> None:
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))
    a, b = (
        str(_write(tmp_path / "a", attempts)),
        str(_write(tmp_path / "b", _ended(attempts, Outcome.OOM_PREFILL))),
    )
    assert _row(compare([a, b]), "Speed", "pocket baseline, eager, 64 MiB, 64 + 4,000").endswith(
        "| yes: the outcome |"
    )
    assert compare_command([a, b], as_json=True, fail_on="speed:5%", out=None) == 0


def test_less_far_without_an_end_cannot_be_told(tmp_path: Path) -> None:
    """One sweep asked for less: that its streaming passed all of it says nothing of what would have been."""
    for name, lengths in (("far", [500, 4000]), ("near", [500, 1000])):
        spec = demo_spec(repeats=3, lengths=lengths)
        with open_run(tmp_path / name, spec) as run:
            run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
    folders = [str(tmp_path / "far"), str(tmp_path / "near")]
    told = _row(compare(folders), "Boundaries", "pocket streaming, eager")
    assert told.endswith("| ≥ 4,000 | ≥ 1,000 | cannot tell: it did not run out |")
    assert compare_command(folders, as_json=True, fail_on="boundary:2%", out=None) == 0


def test_a_check_of_nothing_does_not_pass(tmp_path: Path) -> None:
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))
    with open_run(tmp_path / "b", demo_spec()) as run:
        run.finish("finished")
    folders = [str(_write(tmp_path / "a", attempts)), str(tmp_path / "b")]
    with pytest.raises(SpecError, match="the runs have no speed in common, so nothing is checked"):
        compare_command(folders, as_json=True, fail_on="speed:5%", out=None)
    with pytest.raises(SpecError, match="speed has two limits"):
        compare_command(folders, as_json=True, fail_on="speed:5%,speed:9%", out=None)


def test_each_kind_of_device_is_held_against_its_own_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second kind is slower in both runs: that is no regression. Where it became slower still, it is one."""
    attempts = demo_attempts(demo_spec(repeats=3, lengths=[500, 4000]))

    def both(factor: float) -> list[Attempt]:
        device = dataclasses.replace(CPU, kind="slow", uuid="slow-0")
        others = [
            dataclasses.replace(_faster(a, factor, 1.0), device=device, lease_id=f"{a.lease_id}s")
            for a in attempts
        ]
        return [*attempts, *others]

    same = [str(_write(tmp_path / "a", both(0.5))), str(_write(tmp_path / "b", both(0.5)))]
    assert compare_command(same, as_json=True, fail_on="speed:5%", out=None) == 0
    slower = [same[0], str(_write(tmp_path / "c", both(0.4)))]
    capsys.readouterr()
    assert compare_command(slower, as_json=True, fail_on="speed:5%", out=None) == 1
    told = json.loads(capsys.readouterr().out)["worse"]
    assert all(words.endswith("-20.0 % in B (slow)") for words in told)
    assert "B (slow) against A (slow): yes: 0.80×" in compare(slower)
