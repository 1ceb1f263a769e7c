"""Models in an object store: one copy per node, whoever asks, however often; a changed model is a new copy."""

import multiprocessing
import time
from pathlib import Path

import fsspec
import pytest
import torch

from tests.workers.models.folders import save, save_gguf
from workers.cell import ModelRef
from workers.models import Unavailable
from workers.models.load import LoadError, load_model, read_config
from workers.models.node_cache import build_once

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder: Path, url: str) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", url.removeprefix("memory:/"), recursive=True)


def test_a_folder_is_copied_once_and_metadata_alone_for_the_configuration(
    tmp_path: Path, cache: Path
) -> None:
    url = "memory://bucket/once"
    folder = save(tmp_path / "model")
    (folder / "training.log").write_text("not part of a model")
    upload(folder, url)
    ref = ModelRef(target=url)
    assert read_config(url, ref).vocab_size == 2048
    assert not list(cache.rglob("*.safetensors"))
    first = load_model(url, ref, CPU)
    copies = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    second = load_model(url, ref, CPU)
    assert copies
    assert copies == {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert not list(cache.rglob("training.log"))
    here = load_model(str(folder), ref, CPU)
    for models in zip(
        first.model.parameters(), second.model.parameters(), here.model.parameters(), strict=True
    ):
        assert torch.equal(models[0], models[1])
        assert torch.equal(models[0], models[2])


def test_a_changed_model_is_fetched_anew(tmp_path: Path) -> None:
    url = "memory://bucket/changing"
    upload(save(tmp_path / "one"), url)
    assert read_config(url, ModelRef(target=url)).num_hidden_layers == 2
    fsspec.filesystem("memory").rm("/bucket/changing", recursive=True)
    upload(save(tmp_path / "two", num_hidden_layers=1), url)
    assert read_config(url, ModelRef(target=url)).num_hidden_layers == 1


def test_a_single_gguf_file(tmp_path: Path) -> None:
    save_gguf(tmp_path / "tiny.gguf")
    url = f"file://{tmp_path}/tiny.gguf"
    assert load_model(url, ModelRef(target=url), CPU).vocab_size == 300


def test_nothing_there_and_no_way_there() -> None:
    for url, kind, message in (
        ("memory://bucket/nothing", LoadError, "nothing there"),
        ("gs://bucket/model", Unavailable, r"pip install gcsfs"),
        ("nowhere://bucket/model", LoadError, "cannot be read: Protocol not known: nowhere"),
    ):
        with pytest.raises(LoadError, match=message) as raised:
            read_config(url, ModelRef(target=url))
        assert raised.type is kind


def _append_and_build(folder: Path, log: Path) -> None:
    with open(log, "a") as file:
        file.write("built\n")
    time.sleep(0.3)  # long enough for every other process to come by
    (folder / "part").write_text("whole")


def _worker(log: Path, barrier) -> None:  # type: ignore[no-untyped-def]
    barrier.wait()
    folder = build_once("shared/thing", lambda scratch: _append_and_build(scratch, log))
    assert (folder / "part").read_text() == "whole"


def test_many_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    log = tmp_path / "log"
    workers = [context.Process(target=_worker, args=(log, barrier)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert log.read_text() == "built\n"


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("the network went away")

    with pytest.raises(OSError, match="went away"):
        build_once("models/thing", fail)
    assert [path.name for path in (cache / "models").iterdir()] == ["thing.lock"]
    assert (build_once("models/thing", lambda folder: (folder / "whole").touch()) / "whole").exists()
