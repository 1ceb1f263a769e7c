"""Files that a sweep file names: found from wherever it is run, and told when they are other ones than before."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.journal.errors import REFUSALS
from orchestrator.journal.folder import FolderError, open_run
from orchestrator.local_files import fingerprints, resolve_paths
from orchestrator.preflight import refuse_bad_input
from orchestrator.spec import SweepSpec, load_spec
from orchestrator.spec_error import SpecError
from tests.workers.models.folders import save, save_gguf


def spec_of(target: str, corpus: str = "builtin", draft: str = "null") -> SweepSpec:
    return load_spec(f"name: a\nmodels: [{{target: '{target}', draft: {draft}}}]\ncorpus: '{corpus}'\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not the sweep file's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_relative_paths_are_those_beside_the_sweep_file(tmp_path: Path, elsewhere: Path) -> None:
    sweeps = tmp_path / "sweeps"
    save(sweeps / "model")
    save(sweeps / "org" / "draft")
    (sweeps / "text.txt").write_text("text")
    save_gguf(sweeps / "model.gguf")
    for written, found in (
        ("model", "model"),
        ("./model", "model"),
        ("../sweeps/model", "model"),
        ("model.gguf", "model.gguf"),
    ):
        resolved = resolve_paths(spec_of(written, "text.txt", "org/draft"), sweeps)
        assert resolved.models[0].target == str(sweeps / found)
        assert resolved.models[0].draft == str(sweeps / "org" / "draft")
        assert resolved.corpus == str(sweeps / "text.txt")
    assert resolve_paths(spec_of("random:model"), sweeps).models[0].target == f"random:{sweeps / 'model'}"
    os.chdir(sweeps)  # a relative folder of the sweep file
    assert resolve_paths(spec_of("model"), Path()).models[0].target == str(sweeps / "model")


def test_what_is_not_beside_the_sweep_file_may_be_in_the_current_folder(
    tmp_path: Path, elsewhere: Path
) -> None:
    save(elsewhere / "model")
    assert resolve_paths(spec_of("model"), tmp_path).models[0].target == str(elsewhere / "model")
    save(tmp_path / "model")
    assert resolve_paths(spec_of("model"), tmp_path).models[0].target == str(tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    [
        "pocket",
        "pocket-draft",
        "random:pythia-160m",
        "org/repo",
        "gpt2",
        "s3://bucket/model",
        "org/repo/file.gguf",
    ],
)
def test_names_that_are_no_paths_stay(tmp_path: Path, elsewhere: Path, name: str) -> None:
    for beside in ("pocket", "pythia-160m"):
        (tmp_path / beside).mkdir()
    for corpus in ("builtin", "wikitext-2", "org/data:config:split"):
        spec = spec_of(name, corpus)
        assert resolve_paths(spec, tmp_path) == spec


def test_a_path_to_nothing_is_named_in_full(tmp_path: Path, elsewhere: Path) -> None:
    with pytest.raises(SpecError, match=f"'{tmp_path}/model' does not exist"):
        refuse_bad_input(resolve_paths(spec_of("./model"), tmp_path))


@pytest.mark.parametrize("changed", ["weights", "config", "tokenizer", "corpus"])
def test_other_files_under_the_same_names_are_told(tmp_path: Path, changed: str) -> None:
    """Their cells are not taken for those on record."""
    model, corpus = save(tmp_path / "model", vocab_size=70_000), tmp_path / "text.txt"
    (model / "tokenizer.json").write_text('{"a": 1}')
    corpus.write_text("one two")
    spec = spec_of(str(model), str(corpus))
    open_run(tmp_path / "run", spec).close()
    open_run(tmp_path / "run", spec).close()
    weights = max(model.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    path = {
        "weights": weights,
        "config": model / "config.json",
        "tokenizer": model / "tokenizer.json",
        "corpus": corpus,
    }[changed]
    assert changed != "weights" or path.stat().st_size > 4 * 2**20  # of which blocks are read
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(byte ^ 1 for byte in content[half:]))
    with pytest.raises(
        FolderError, match=rf"holds results of other files: {path} changed since: give another --out"
    ):
        open_run(tmp_path / "run", spec)
    path.write_bytes(content)
    os.utime(path, (1, 1))  # a copy's times are its own
    open_run(tmp_path / "run", spec).close()
    assert FolderError in REFUSALS


def test_one_tensor_that_was_trained_again_is_told(tmp_path: Path) -> None:
    """Small between large ones, it lies in none of the blocks that are spaced evenly over the file."""
    spec = spec_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    weights = {name: np.zeros(2**20 * 8, dtype=np.uint8) for name in ("a", "c")}
    for value in (0, 1):
        save_file({**weights, "b": np.full(64, value, dtype=np.uint8)}, tmp_path / "model.safetensors")
        if value == 0:
            before = fingerprints(spec)
    changed = {path for path, digest in fingerprints(spec).items() if digest != before[path]}
    assert changed == {str(tmp_path / "model.safetensors")}


def test_what_a_model_does_not_consist_of_is_not_compared(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    (model / "README.md").write_text("one")
    names = {Path(path).name for path in fingerprints(spec_of(str(model)))}
    assert "README.md" not in names
    assert {"config.json", "model.safetensors.index.json"} <= names


def test_what_a_job_ships_with_its_working_directory_stays_relative(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each worker runs in its own copy. A job without one ships nothing."""
    save(elsewhere / "sweeps" / "model")
    (elsewhere / "text.txt").write_text("text")
    save(tmp_path / "outside")
    for shipped in ("gcs://_ray_pkg_1.zip", None):
        job = json.dumps({"runtime_env": {"working_dir": shipped}})
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
        resolved = resolve_paths(spec_of("model", "text.txt", "../../outside"), elsewhere / "sweeps")
        model, corpus = elsewhere / "sweeps" / "model", elsewhere / "text.txt"
        assert resolved.models[0].target == ("./sweeps/model" if shipped else str(model))
        assert resolved.corpus == ("./text.txt" if shipped else str(corpus))
        assert resolved.models[0].draft == str(tmp_path / "outside")
