"""Paths that are not what a command expects: one line that names the path, exit status 2, nothing written."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.cli import main
from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from tests.orchestrator.fake_run import demo_attempts, demo_spec

SWEEP = "name: a\nmodels: [{target: pocket, dtype: float32}]\nmodes: [baseline]\nlengths: [8]\n"
Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["oomline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        # `run` has said its first word where the sweep file could be read.
        assert (ended.value.code, len(said.out.splitlines()) <= (arguments[0] == "run")) == (2, True)
        assert said.err.startswith("oomline: ")
        assert len(said.err.splitlines()) == 1, said.err
        return said.err

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    with open_run(out, demo_spec()) as folder:
        folder.journal.append([Record(folder.run_id, attempt) for attempt in demo_attempts()[:1]])
    return out


def nowhere(path: Path) -> None:
    shutil.rmtree(path)


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def a_link_to_itself(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path)


def some_other_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.tex").write_text("x")


def of_a_newer_oomline(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))


def spec_is_a_folder(path: Path) -> None:
    (path / "spec.yaml").unlink()
    (path / "spec.yaml").mkdir()


def manifest_is_a_folder(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


def journal_is_a_file(path: Path) -> None:
    shutil.rmtree(path / "journal")
    (path / "journal").write_text("x")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nowhere, "is no run folder"),
        (a_file, "Not a directory"),
        (a_link_to_itself, "Too many levels of symbolic links"),
        (some_other_folder, "is no run folder: there is no spec.yaml and no journal in it"),
        (of_a_newer_oomline, "schema version 99, this oomline reads up to 1: use the newer oomline"),
        (spec_is_a_folder, "Is a directory (spec.yaml)"),
        (manifest_is_a_folder, "Is a directory (manifest.json)"),
        (journal_is_a_file, "Not a directory (journal"),
    ],
)
def test_what_is_no_run(
    run: Path, tmp_path: Path, refused: Refused, spoil: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    spoil(path)
    before = sorted(tmp_path.rglob("*"))
    for arguments in (["status", path], ["report", path], ["compare", run, path], ["compare", path, run]):
        said = refused(*arguments)
        assert str(path) in said
        assert words in said
    assert sorted(tmp_path.rglob("*")) == before, "a report was written into a folder that is no run's"


@pytest.fixture
def read_only(run: Path, tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    shutil.copytree(run, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_takes_nothing(read_only: Path, tmp_path: Path, refused: Refused) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP)
    ids = tmp_path / "ids.json"
    ids.write_text("[1]")
    assert "Read-only file system" in refused("report", read_only / "run")
    assert "Read-only file system" in refused("run", sweep, "--out", read_only / "new")
    said = refused(
        "logits", "--model", "pocket", "--mode", "baseline", "--tokens", ids, "--out", read_only / "x"
    )
    assert f"{read_only} cannot be written" in said


def test_what_is_in_the_way_of_a_report(run: Path, tmp_path: Path, refused: Refused) -> None:
    for name, words in (("tables", "File exists (tables/"), ("report.md", "Is a directory (report.md)")):
        path = tmp_path / name
        shutil.copytree(run, path)
        (path / name).write_text("x") if name == "tables" else (path / name).mkdir()
        assert words in refused("report", path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("file", "File exists"), ("file/x", "Not a directory"), ("x" * 300, "File name too long")],
)
def test_a_run_folder_that_cannot_be(tmp_path: Path, refused: Refused, name: str, words: str) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP)
    (tmp_path / "file").write_text("x")
    assert f"--out {tmp_path / name}: {words}" in refused("run", sweep, "--out", tmp_path / name)
    assert "begins with its kind of store" in refused("run", sweep, "--out", "://bucket/run")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "a sweep file has keys with values"),
        (b"\xff\xfe\x00\x01", "can't decode byte 0xff"),
        ("folder", "Is a directory"),
    ],
)
def test_what_is_no_sweep_file(
    tmp_path: Path, refused: Refused, content: bytes | str | None, words: str
) -> None:
    sweep = tmp_path / "sweep.yaml"
    if content == "folder":
        sweep.mkdir()
    elif isinstance(content, bytes):
        sweep.write_bytes(content)
    for command in ("plan", "run"):
        assert words in refused(command, sweep)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (".", "is no file"),
        ("pipe", "is no file"),
        ("file/x", "is no folder"),
        ("nowhere/x", "is no folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_logits_that_have_no_place(tmp_path: Path, refused: Refused, out: str, words: str) -> None:
    """Refused before the model is loaded; a device or a pipe of that name stays what it is."""
    ids = tmp_path / "ids.json"
    ids.write_text("[1]")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    said = refused(
        "logits", "--model", "nosuch", "--mode", "baseline", "--tokens", ids, "--out", tmp_path / out
    )
    assert words in said
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
