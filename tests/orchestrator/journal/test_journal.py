import dataclasses
import io
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.journal import parts
from orchestrator.journal.errors import JournalFull, SchemaTooNew
from orchestrator.journal.journal import Journal
from orchestrator.journal.record import SCHEMA_VERSION, Record, to_frame
from tests.orchestrator.fake_run import demo_attempts
from workers.attempt import Attempt
from workers.outcome import Outcome

ATTEMPTS = [dataclasses.replace(attempt, samples=attempt.samples[:9]) for attempt in demo_attempts()[:6]]
LIGHT = [
    dataclasses.replace(attempt, samples=(), steps=(), results=(), output_ids=()) for attempt in ATTEMPTS
]


def _records(attempts: list[Attempt]) -> list[Record]:
    return [Record("run", attempt) for attempt in attempts]


def _write(folder: Path, *batches: list[Attempt]) -> Journal:
    journal = Journal.open(folder)
    for batch in batches:
        journal.append(_records(batch))
    return journal


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("*.parquet"))


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    _write(tmp_path, ATTEMPTS[:1], ATTEMPTS[1:4])
    journal = _write(tmp_path, ATTEMPTS[4:])

    assert journal.attempts() == LIGHT
    assert journal.whole(ATTEMPTS[2].lease_id) == ATTEMPTS[2]
    assert journal.whole("nobody") is None
    past = journal.history()
    assert [(p.lease_id, p.cell, p.outcome, p.device) for p in past] == [
        (a.lease_id, a.cell, a.outcome, a.device) for a in ATTEMPTS
    ]
    assert [path.name[:11] for path in _parts(tmp_path)] == ["part-000001", "part-000002", "part-000003"]


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "none")
    assert (journal.history(), journal.attempts(), journal.set_aside) == ([], [], [])
    journal.append([])
    assert not (tmp_path / "none").exists()


def test_a_torn_part_is_set_aside_with_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, ATTEMPTS[:2], ATTEMPTS[2:4])
    torn = _parts(tmp_path)[0]
    torn.write_bytes(torn.read_bytes()[:-40])

    reader = Journal.open(tmp_path, writable=False)
    assert reader.attempts() == LIGHT[2:4]
    assert torn.exists(), "a reader changes nothing"

    writer = Journal.open(tmp_path)
    assert writer.attempts() == LIGHT[2:4]
    assert [bad.name for bad in writer.set_aside] == [torn.name]
    assert torn.name in caplog.text
    assert (tmp_path / "journal" / "set-aside" / torn.name).exists()
    assert not torn.exists()
    assert [bad.name for bad in Journal.open(tmp_path).set_aside] == [torn.name], "it stays known"
    writer.append(_records(ATTEMPTS[:1]))
    assert _parts(tmp_path)[-1].name.startswith("part-000003"), "a number is never given twice"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_its_files_reading_never_raises_and_never_invents_a_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    _write(folder, *([attempt] for attempt in ATTEMPTS[:3]))
    untouched = {path.name for path in _parts(folder)}
    for path in _parts(folder):
        damage = data.draw(
            st.sampled_from(["none", "truncate", "flip", "rename", "replace", "remove", "append"])
        )
        content = bytearray(path.read_bytes())
        if damage == "truncate":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        elif damage == "flip":
            for bit in data.draw(
                st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=8, unique=True)
            ):
                content[bit // 8] ^= 1 << bit % 8
        elif damage == "replace":
            content = bytearray(data.draw(st.binary(max_size=200)))
        elif damage == "append":
            content += data.draw(st.binary(min_size=1, max_size=20))
        path.write_bytes(content)
        if damage == "remove":
            path.unlink()
        if damage == "rename":
            path.rename(
                path.with_name(
                    path.name.replace("part-00000", data.draw(st.sampled_from(["part-", "x", "part-9"])))
                )
            )
        if damage != "none":
            untouched.discard(path.name)

    read = Journal.open(folder, writable=data.draw(st.booleans())).attempts()

    assert all(attempt in LIGHT for attempt in read)
    kept = [LIGHT[int(name[5:11]) - 1] for name in sorted(untouched)]
    assert all(attempt in read for attempt in kept), "an untouched part is never dropped"


def test_a_file_with_the_right_hash_that_is_no_part_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path, ATTEMPTS[:1])
    buffer = io.BytesIO()
    pl.DataFrame({"attempt": ["one"]}).write_parquet(buffer)
    for number, content in enumerate([b"", b"PAR1PAR1", buffer.getvalue()], start=2):
        name = f"part-{number:06d}-{parts._digest(content)}.parquet"
        (tmp_path / "journal" / name).write_bytes(content)
    wrong_types = parts.encode(pl.DataFrame({"attempt": ["one"]}))
    name = parts.name_of(wrong_types, 9)
    (tmp_path / "journal" / name).write_bytes(wrong_types)

    journal = Journal.open(tmp_path)
    assert journal.attempts() == LIGHT[:1]
    assert len(journal.set_aside) == 4


def test_the_first_of_equal_leases_and_of_equal_attempts_wins(tmp_path: Path) -> None:
    first = ATTEMPTS[0]
    late = dataclasses.replace(first, outcome=Outcome.INFRA_ERROR)
    orphan = dataclasses.replace(first, lease_id="another", outcome=Outcome.TIMEOUT)
    elsewhere = dataclasses.replace(
        first, lease_id="elsewhere", device=dataclasses.replace(first.device, kind="H100")
    )
    retried = dataclasses.replace(first, lease_id="retried", attempt=2)
    journal = _write(tmp_path, [first], [late, orphan], [elsewhere, retried])

    assert [attempt.lease_id for attempt in journal.attempts()] == [first.lease_id, "elsewhere", "retried"]
    with journal.view() as view:
        assert view.duplicates["outcome"].to_list() == ["infra_error", "timeout"]


def test_a_part_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    data = parts.encode(to_frame(_records(ATTEMPTS[:1])), version=SCHEMA_VERSION + 1)
    name = parts.name_of(data, 1)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / name).write_bytes(data)

    with pytest.raises(SchemaTooNew, match="newer oomline"):
        Journal.open(tmp_path).attempts()
    assert (tmp_path / "journal" / name).exists()


def test_a_part_without_a_newer_column_reads_it_as_null(tmp_path: Path) -> None:
    frame = to_frame(_records(ATTEMPTS[:1])).drop("first_model_call_s", "step_reserved_bytes")
    data = parts.encode(frame)
    name = parts.name_of(data, 1)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / name).write_bytes(data)
    journal = Journal.open(tmp_path)
    journal.append(_records(ATTEMPTS[1:2]))

    assert [attempt.first_model_call_s for attempt in journal.attempts()] == [None, 0.03]


def test_an_older_part_goes_through_its_migrations(tmp_path: Path) -> None:
    old = to_frame(_records(ATTEMPTS[:2])).rename({"duration_s": "seconds"}).drop("corpus", "text_head")
    data = parts.encode(old, version=SCHEMA_VERSION - 1)
    name = parts.name_of(data, 1)
    path = tmp_path / name
    path.write_bytes(data)
    part = parts.check(name, path)
    assert isinstance(part, parts.Part)

    rows = parts.scan(
        [part], {SCHEMA_VERSION - 1: lambda frame: frame.rename({"seconds": "duration_s"})}
    ).collect()

    assert rows["duration_s"].to_list() == [attempt.duration_s for attempt in ATTEMPTS[:2]]
    assert rows["corpus"].to_list() == ["builtin", "builtin"], "a part older than an axis: the usual value"
    assert rows["text_head"].to_list() == [None, None]


_FILL = """
import sys
from orchestrator.journal.errors import JournalFull
from orchestrator.journal.journal import Journal
from tests.orchestrator.journal.test_journal import ATTEMPTS, _records
journal, written = Journal.open(sys.argv[1]), 0
try:
    for _ in range(200):
        journal.append(_records([ATTEMPTS[written % 6]] * (1 + written)))
        written += 1
except JournalFull as error:
    assert "make room" in str(error)
    print(written)
"""


def _fill(folder: Path) -> int:
    command = [sys.executable, "-c", _FILL, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=Path.cwd())
    return int(run.stdout)


def _check_full(folder: Path, written: int) -> None:
    assert written >= 1
    assert len(_parts(folder)) == written
    assert [entry for entry in os.listdir(folder / "journal") if not entry.endswith(".parquet")] == []
    journal = Journal.open(folder, writable=False)
    assert len(journal.attempts()) == min(written, 6)
    assert journal.set_aside == []


def test_a_full_disk_ends_in_journal_full_and_costs_nothing_written_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        _check_full(disk, _fill(disk))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_killed_writer_leaves_no_junk_behind_after_the_next_start(tmp_path: Path) -> None:
    _write(tmp_path, ATTEMPTS[:1])
    half = tmp_path / "journal" / ".part-000002-0123456789abcdef.parquet.77.tmp"
    half.write_bytes(b"half a part")

    assert Journal.open(tmp_path, writable=False).attempts() == LIGHT[:1]
    assert half.exists()
    assert Journal.open(tmp_path).attempts() == LIGHT[:1]
    assert not half.exists()


_WRITE_ON = """
import itertools, sys
from orchestrator.journal.journal import Journal
from tests.orchestrator.journal.test_journal import ATTEMPTS, _records
import dataclasses
journal = Journal.open(sys.argv[1])
for number in itertools.count():
    journal.append(_records([dataclasses.replace(ATTEMPTS[0], lease_id=str(number), attempt=number)]))
    print(number, flush=True)
"""


def test_what_a_writer_had_appended_when_it_was_killed_is_on_record(tmp_path: Path) -> None:
    """Killed at any point of the next append: it is either whole or not there."""
    command = [sys.executable, "-c", _WRITE_ON, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 20:
                writer.kill()
                break
        told = 20 + len(writer.stdout.read().split())
    journal = Journal.open(tmp_path)
    assert [past.lease_id for past in journal.history()] == [str(n) for n in range(len(journal.history()))]
    assert len(journal.history()) in (told + 1, told + 2)
    assert journal.set_aside == []


def test_a_file_size_limit_ends_in_journal_full_and_the_journal_goes_on_after_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = _write(tmp_path, ATTEMPTS[:1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(JournalFull):
            journal.append(_records(ATTEMPTS[1:2]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(_records(ATTEMPTS[1:2]))
    assert journal.attempts() == LIGHT[:2]
