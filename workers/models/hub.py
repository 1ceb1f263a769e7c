"""Models of the Hugging Face hub: a snapshot on this node, and a clear word when the hub does not answer."""

import difflib
import glob
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from workers.models import LoadError, Unavailable, shapes
from workers.models.node_cache import cannot_be_written
from workers.models.wanted import Wanted
from workers.models.weight_files import weight_names

#: How long the hub may take to say what a repository holds. Downloads themselves are not limited.
_ANSWER_S = 8.0


class HubError(Exception):
    """The hub, or this repository of it, cannot be had. One line: why."""


def snapshot(repo_id: str, wanted: Wanted) -> Path:
    """The folder of `repo_id` on this node with the wanted files, downloaded at most once.

    What an earlier run brought completely is used as it is, without asking the hub: one revision for all cells.
    Raises `LoadError`, within about 10 s when the hub is silent.
    """
    try:
        folder = Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
        if _complete(folder, wanted):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise LoadError(f"{repo_id}: neither a folder here nor a hub id; {_choices(repo_id)}") from error
    try:
        info = describe(repo_id, "model")
        names = wanted.choose(
            repo_id,
            [file.rfilename for file in info.siblings],
            lambda name: Path(
                huggingface_hub.hf_hub_download(repo_id, name, revision=info.sha, etag_timeout=5)
            ).read_bytes(),
        )
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=info.sha,
                allow_patterns=[glob.escape(name) for name in names],  # each is one name, and no pattern
                etag_timeout=5,
            )
        )
    except HubError as error:
        raise Unavailable(f"{repo_id}: {error}; {_choices(repo_id)}") from error
    except LoadError:
        raise
    except Exception as error:  # the hub's client, its transport, and the disk each raise their own
        raise Unavailable(f"{repo_id}: the download failed ({_short(error)}); {_choices(repo_id)}") from error


def file(repo_id: str, name: str) -> Path:
    """One file of `repo_id` on this node, downloaded at most once. Raises `LoadError`."""
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, name, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    try:
        info = describe(repo_id, "model")
        return Path(huggingface_hub.hf_hub_download(repo_id, name, revision=info.sha, etag_timeout=5))
    except errors.RemoteEntryNotFoundError as error:
        raise LoadError(
            f"{repo_id}/{name}: the repository has no such file; look at its list of files"
        ) from error
    except Exception as error:  # as above
        raise Unavailable(f"{repo_id}/{name}: {_short(error)}; {_choices(repo_id)}") from error


def tensor_bytes(repo_id: str) -> list[int]:
    """Bytes of each tensor in the safetensors files of `repo_id`: their headers are read, not the tensors. Raises `LoadError`."""
    try:
        info = describe(repo_id, "model")
        headers = huggingface_hub.HfApi().get_safetensors_metadata(
            repo_id, revision=info.sha, timeout=_ANSWER_S
        )
    except HubError as error:
        raise Unavailable(f"{repo_id}: {error}") from error
    except Exception as error:  # as in `snapshot`
        raise Unavailable(f"{repo_id}: {_short(error)}") from error
    offsets = [t.data_offsets for file in headers.files_metadata.values() for t in file.tensors.values()]
    return [end - start for start, end in offsets]


def describe(repo_id: str, repo_type: str) -> Any:
    """What the hub says of a repository: `huggingface_hub.ModelInfo` or `DatasetInfo`. Raises `HubError`.

    Asked from a thread, since name resolution has no time limit of its own. Honours HF_HUB_OFFLINE.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError("not on this node, and HF_HUB_OFFLINE is set")
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(huggingface_hub.HfApi().repo_info(repo_id, repo_type=repo_type, timeout=_ANSWER_S))
        except Exception as error:  # raised again below, in the thread that asked
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if not answer:
        raise HubError(f"the hub did not answer within {_ANSWER_S:.0f} s")
    match answer[0]:
        case errors.GatedRepoError() as error:
            raise HubError(
                "the hub asks for a login (gated): accept its terms there and set HF_TOKEN"
            ) from error
        case errors.RepositoryNotFoundError() as error:
            raise HubError(
                "the hub has none of that name that you may see: check it, or set HF_TOKEN"
            ) from error
        case Exception() as error:
            raise HubError(f"no connection to the hub ({_short(error)})") from error
    return answer[0]


def _complete(folder: Path, wanted: Wanted) -> bool:
    """Whether an earlier download left all that is wanted: a configuration, and each shard that the index names."""
    if not (folder / "config.json").is_file():
        return False
    if not wanted.weights:
        return True
    listing = [path.name for path in folder.iterdir()]
    try:
        weight_names(str(folder), listing, lambda name: (folder / name).read_bytes(), pickles=wanted.pickles)
    except LoadError:
        return False
    return True


def _choices(repo_id: str) -> str:
    near = difflib.get_close_matches(repo_id.rpartition("/")[2].lower(), shapes.shapes(), 1)
    shape = (
        f"random:{near[0]} (the shape without weights)" if near else "a shape without weights (random:NAME)"
    )
    return f"offline, name a local folder, a .gguf file, {shape} or pocket"


def _short(error: BaseException) -> str:
    remedy = "; set HF_HOME to a folder that can be written" if cannot_be_written(error) else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{remedy}"
