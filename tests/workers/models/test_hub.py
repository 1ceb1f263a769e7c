"""Hub models, against a hub on this machine: fetched once, only what is needed, and never a hang."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.workers.models.folders import pickle_weights, save
from tests.workers.models.hub_server import serve
from workers.cell import ModelRef
from workers.models import Unavailable, hub
from workers.models.load import LoadError, load_model, read_config
from workers.models.stored_weights import stored_tensors
from workers.text import CorpusUnavailable
from workers.text.corpus import token_ids

REF = ModelRef(target="org/tiny")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path / "cache"))


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_model_is_fetched_once_and_its_configuration_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "tiny")
    (folder / "pytorch_model.bin").write_bytes(b"pickled twin, not wanted")
    requests: list[str] = []
    with serve("org/tiny", folder, requests) as endpoint:
        point_to(endpoint, monkeypatch)
        assert read_config("org/tiny", REF).num_hidden_layers == 2
        assert not any(".safetensors " in f"{line} " for line in requests)
        loaded = load_model("org/tiny", REF, CPU)
        assert any(".safetensors" in line for line in requests)
        assert not any(".bin" in line for line in requests)
    again = load_model("org/tiny", REF, CPU)  # the hub is gone
    for mine, theirs in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_sizes_of_tensors_are_told_by_the_headers_of_files_that_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "tiny")
    here = stored_tensors(str(folder), REF)
    with serve("org/tiny", folder, []) as endpoint:
        point_to(endpoint, monkeypatch)
        assert stored_tensors("org/tiny", REF) == here
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert sum(size * count for size, count in here or ()) == sum(
        tensor.nbytes for tensor in load_model(str(folder), REF, CPU).model.state_dict().values()
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert stored_tensors("org/tiny", REF) is None


def test_shards_of_any_name_are_fetched_by_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are names, also where they read like patterns; what it does not name is not fetched."""
    folder = save(tmp_path / "tiny")
    index = folder / "model.safetensors.index.json"
    content = index.read_text()
    for number, shard in enumerate(sorted(folder.glob("model-*.safetensors"))):
        shard.rename(folder / f"part[{number}].safetensors")
        content = content.replace(shard.name, f"part[{number}].safetensors")
    index.write_text(content)
    (folder / "consolidated.safetensors").write_bytes(b"the same in another format")
    requests: list[str] = []
    with serve("org/tiny", folder, requests) as endpoint:
        point_to(endpoint, monkeypatch)
        assert load_model("org/tiny", REF, CPU).vocab_size == 2048
    assert not any("consolidated" in line for line in requests)


def test_pickled_weights_are_not_even_downloaded_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickle_weights(save(tmp_path / "tiny"))
    requests: list[str] = []
    with serve("org/tiny", folder, requests) as endpoint:
        point_to(endpoint, monkeypatch)
        with pytest.raises(LoadError, match="allow_pickle: true"):
            load_model("org/tiny", REF, CPU)
        assert not any(".bin" in line for line in requests)
        loaded = load_model("org/tiny", ModelRef(target="org/tiny", allow_pickle=True), CPU)
        assert loaded.model.dtype == torch.bfloat16


def test_an_unknown_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("org/tiny", tmp_path, []) as endpoint:
        point_to(endpoint, monkeypatch)
        with pytest.raises(Unavailable, match="org/other: the hub has none of that name"):
            read_config("org/other", REF)


def test_a_silent_hub_is_given_up_with_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr(hub, "_ANSWER_S", 0.3)
        for error, ask in (
            (Unavailable, lambda: read_config("EleutherAI/pythia-2.8b-v0", REF)),
            (CorpusUnavailable, lambda: token_ids("wikitext-2", "pocket", REF, 0, 8)),
        ):
            with pytest.raises(error, match=r"(did not answer|no connection).*offline") as raised:
                ask()
            assert ("random:pythia-2.8b" in str(raised.value)) == (error is Unavailable)


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match=r"HF_HUB_OFFLINE is set; offline, name a local folder"):
        read_config("EleutherAI/pythia-160m", REF)


@pytest.mark.parametrize(
    ("name", "shape"), [("gpt2", "random:NAME"), ("org/Pythia-2.8B-deduped", "random:pythia-2.8b ")]
)
def test_a_shape_is_named_where_one_is_near(monkeypatch: pytest.MonkeyPatch, name: str, shape: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable) as raised:
        read_config(name, REF)
    assert shape in str(raised.value)
