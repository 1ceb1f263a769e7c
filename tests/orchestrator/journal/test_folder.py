import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from orchestrator.journal.errors import FolderError, FolderInUse, SchemaTooNew, StoreError
from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.manifest import environment
from orchestrator.journal.record import Record
from orchestrator.journal.store import LocalStore
from orchestrator.report import render
from orchestrator.spec import load_spec
from tests.orchestrator.fake_run import CPU, MiB, demo_attempts, demo_spec


def test_the_same_sweep_goes_on_in_its_folder(tmp_path: Path) -> None:
    attempt = demo_attempts()[0]
    with open_run(tmp_path / "run", demo_spec()) as folder:
        assert not folder.resumed
        folder.plan(20)
        folder.journal.append([Record(folder.run_id, attempt)])
        folder.devices([CPU])
        folder.devices([CPU])
        first = folder.run_id
    with open_run(tmp_path / "run", demo_spec()) as folder:
        assert folder.resumed
        assert folder.run_id == first
        assert [past.lease_id for past in folder.journal.history()] == [attempt.lease_id]
        folder.finish("finished")

    run = read_run(tmp_path / "run")
    assert run.spec == demo_spec()
    assert run.manifest is not None
    assert (run.manifest.cells, run.manifest.devices) == (20, (CPU,))
    assert [session.state for session in run.manifest.sessions] == ["died", "finished"]
    assert load_spec((tmp_path / "run" / "spec.yaml").read_text()) == demo_spec()
    assert set(run.manifest.environment.packages) >= {"torch", "transformers", "ray", "polars"}


def test_a_note_or_a_device_that_is_not_unicode_is_no_reason_to_lose_the_manifest(tmp_path: Path) -> None:
    with open_run(tmp_path, demo_spec()) as folder:
        folder.devices([replace(CPU, node="a\udcff", kind="c\0pu")])
        folder.finish("failed", "OSError: \ud800 /x\udcff")

    manifest = read_run(tmp_path).manifest
    assert manifest is not None
    assert (manifest.devices[0].node, manifest.devices[0].kind) == ("a?", "c\0pu")
    assert (manifest.state, manifest.sessions[-1].note) == ("failed", "OSError: ? /x?")


def test_another_sweep_is_refused_and_the_message_names_what_differs(tmp_path: Path) -> None:
    open_run(tmp_path, demo_spec()).close()

    with pytest.raises(FolderError, match=r"another sweep \(seed: 0 there, 1 now.*--out"):
        open_run(tmp_path, demo_spec(seed=1))
    open_run(tmp_path, demo_spec()).close()


def test_a_second_driver_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    program = (
        "import sys; from orchestrator.journal.folder import open_run;"
        "from tests.orchestrator.fake_run import demo_spec; folder = open_run(sys.argv[1], demo_spec());"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"pid {holder.pid} on "):
            open_run(tmp_path, demo_spec())
        assert read_run(tmp_path).journal.history() == [], "reading goes on"
    finally:
        holder.kill()
        holder.wait()
    open_run(tmp_path, demo_spec()).close()


def test_a_folder_of_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_run(tmp_path, demo_spec()).close()
    path = tmp_path / "manifest.json"
    newer = json.dumps(json.loads(path.read_text()) | {"schema_version": 99, "unheard_of": 1})
    path.write_text(newer)

    for attempt in (lambda: open_run(tmp_path, demo_spec()), lambda: read_run(tmp_path)):
        with pytest.raises(SchemaTooNew, match="newer oomline"):
            attempt()
    assert path.read_text() == newer


def test_a_folder_is_read_from_its_journal_alone(tmp_path: Path) -> None:
    attempt = demo_attempts()[0]
    with open_run(tmp_path, demo_spec()) as folder:
        folder.journal.append([Record(folder.run_id, attempt)])
    (tmp_path / "manifest.json").write_text("{ torn")
    (tmp_path / "spec.yaml").unlink()

    run = read_run(tmp_path)
    assert (run.spec, run.manifest) == (None, None)
    assert [past.lease_id for past in run.journal.history()] == [attempt.lease_id]
    with pytest.raises(FolderError, match=r"no spec\.yaml"):
        open_run(tmp_path, demo_spec())


def test_no_folder_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no run folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="File exists"):
        open_run(tmp_path / "file", demo_spec(budgets=[MiB]))


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../b"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    store = LocalStore(tmp_path / "run")
    with pytest.raises(ValueError, match="inside the run folder"):
        store.write(name, b"")
    assert list(tmp_path.iterdir()) == []


def test_code_and_packages_are_those_of_each_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run(tmp_path, demo_spec()).close()
    now = environment()
    older = now.model_copy(
        update={"sources": "0" * 12, "code_revision": "v1", "packages": {**now.packages, "torch": "2.11.0"}}
    )
    renamed = now.model_copy(update={"code_revision": "the same sources by another name"})
    for there in (older, renamed, now):
        monkeypatch.setattr("orchestrator.journal.folder.environment", lambda there=there: there)
        open_run(tmp_path, demo_spec()).close()

    manifest = read_run(tmp_path).manifest
    assert manifest is not None
    assert [session.environment for session in manifest.sessions] == [now, older, renamed, now]
    assert manifest.other_sessions() == [f"Session 2 ran with code v1 (sources {'0' * 12}), torch 2.11.0."]
    render(tmp_path)
    assert (tmp_path / "report.md").read_text().count("Session 2 ran with code v1") == 2


def test_code_without_git_says_what_the_submitter_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a submitted job: Ray brings the working directory without `.git`, and the package is not installed."""
    root = Path(__file__).parents[3]
    for room in ("orchestrator", "workers"):
        shutil.copytree(root / room, tmp_path / room, ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    here = environment()

    def not_installed(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("orchestrator.journal.manifest.metadata.version", not_installed)
    monkeypatch.setattr("orchestrator.journal.manifest._ROOT", tmp_path)
    assert environment().code_revision == f"oomline {here.package_version}"
    monkeypatch.setenv("OOMLINE_REVISION", "v0.1.0-7-gabc")
    assert (environment().code_revision, environment().sources) == ("v0.1.0-7-gabc", here.sources)
