import dataclasses
from pathlib import Path

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.report import compare
from tests.orchestrator.fake_run import demo_attempts, demo_spec
from workers.attempt import Attempt


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
