import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.journal.errors import FolderError, FolderInUse, SchemaTooNew, StoreError
from orchestrator.journal.folder import open_run, read_run
from orchestrator.journal.record import Record
from orchestrator.journal.store import LocalStore
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
