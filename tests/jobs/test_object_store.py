"""Commands on a run folder in an object store that says no: one line with the remedy; a run loses nothing."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from jobs import run as command
from jobs.cli import main
from orchestrator.journal.journal import Journal
from orchestrator.journal.object_store import ObjectStore
from tests.jobs.simulated_run import simulated_run
from tests.orchestrator.journal.s3 import Relay, environment, new_bucket, s3_server, use
from tests.orchestrator.sweep.simulated import Fate, spec
from workers.attempt import Device
from workers.cell import Lease

CELLS = 6
ASKED = spec(modes=["baseline"], lengths=[1000], repeats=CELLS)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null"},
            ["no valid credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"],
        ),
        (environment("http://127.0.0.1:9"), ["does not answer", "http://127.0.0.1:9/", "AWS_ENDPOINT_URL"]),
        ({"AWS_PROFILE": "nosuch"}, ["no valid credentials", "nosuch", "AWS_PROFILE"]),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    words: list[str],
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    alone = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (alone | variables).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("{name: s, models: [{target: 'random:pythia-14m', dtype: float32}]}")
    for arguments in (
        ["report", "s3://bucket/run"],
        ["status", "s3://bucket/run"],
        ["compare", str(tmp_path), "s3://bucket/run"],
        ["run", str(sweep), "--out", "s3://bucket/run"],
    ):
        monkeypatch.setattr(sys, "argv", ["oomline", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        first_word = arguments[0] == "run"
        assert (ended.value.code, len(said.out.splitlines())) == (2, int(first_word))
        assert len(said.err.splitlines()) == 1, said.err
        if arguments[0] != "compare":
            assert all(word in said.err for word in ["oomline: ", "s3://bucket/run", *words]), said.err


def test_a_bucket_that_is_not_there_is_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(server, monkeypatch)
    with pytest.raises(command.SpecError, match=r"nosuch.*bucket does not exist.*create the bucket"):
        command.run_command(ASKED, "s3://nosuch/run", address=None, cpu_slots=None)


def test_a_store_that_goes_away_costs_no_cell_and_the_same_command_brings_them_home(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket, relay = new_bucket(server), Relay(server)
    use(relay.url, monkeypatch)
    given: list[Lease] = []

    def world(lease: Lease, on: Device) -> Fate:
        given.append(lease)
        if len(given) == 4:
            relay.cut()
        return Fate(1)

    monkeypatch.setattr(command, "run_sweep", simulated_run(world))
    assert command.run_command(ASKED, bucket, address=None, cpu_slots=None) == 1
    said = capsys.readouterr().out
    assert f"{CELLS} cells computed" in said
    assert "no report: " in said
    told = re.search(r"note: s3://\S+ did not take \d+ parts? of the journal: kept in (\S+)\. When it", said)
    assert told is not None
    assert list(Path(told[1]).glob("part-*.parquet"))

    relay.mend()
    known = len(Journal.open(bucket, writable=False).attempts())
    assert known == 3
    # The lease could not be given back; that of a process that is gone is passed at once.
    ObjectStore(bucket).remove("lock/lock-000001")
    monkeypatch.setattr(command, "run_sweep", simulated_run())
    assert command.run_command(ASKED, bucket, address=None, cpu_slots=None) == 0
    said = capsys.readouterr().out
    assert f"0 cells computed, {CELLS} reused" in said
    assert f"report: {bucket}/report.md" in said
    assert not Path(told[1]).exists()
    relay.cut()
