"""Models of the Hugging Face hub: a snapshot on this node, and a clear word when the hub cannot be reached."""

import fnmatch
import json
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from workers.models import LoadError, shapes

#: How long the hub may take to say what a repository holds. Downloads themselves are not limited.
_ANSWER_S = 8.0


def snapshot(repo_id: str, patterns: list[str], pickled: list[str]) -> Path:
    """The folder of `repo_id` on this node with the files that match, downloaded at most once.

    What an earlier run brought is used as it is, without asking the hub. `pickled`: patterns fetched only when the
    repository has no safetensors. Honours HF_HUB_OFFLINE. Raises `LoadError` within about 10 s if the hub is silent.
    """
    try:
        folder = _local(repo_id, patterns + pickled)
        if folder and _complete(folder, patterns, pickled):
            return folder
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise LoadError(
                f"{repo_id}: not on this node, and HF_HUB_OFFLINE is set; {_offline_choices(repo_id)}"
            )
        info = _repository(repo_id)
        names = [file.rfilename for file in info.siblings or []]
        if pickled and not any(_matches(name, ["*.safetensors"]) for name in names):
            patterns = patterns + pickled
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=info.sha, allow_patterns=patterns, etag_timeout=5
            )
        )
    except errors.HFValidationError as error:
        raise LoadError(
            f"{repo_id}: neither a folder here nor a hub id; {_offline_choices(repo_id)}"
        ) from error
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{repo_id}: the hub asks for a login (gated); accept its terms and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LoadError(
            f"{repo_id}: the hub has no such model, or it is private; check the id or set HF_TOKEN"
        ) from error
    except (OSError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise LoadError(
            f"{repo_id}: the hub did not deliver it ({_first_line(error)}); {_offline_choices(repo_id)}"
        ) from error


def _local(repo_id: str, patterns: list[str]) -> Path | None:
    try:
        return Path(
            huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns, local_files_only=True)
        )
    except errors.LocalEntryNotFoundError:
        return None


def _complete(folder: Path, patterns: list[str], pickled: list[str]) -> bool:
    """Whether an earlier download left what `patterns` ask for: every weight of the index, or a configuration."""
    literal = [pattern for pattern in patterns if "*" not in pattern]
    if literal:
        return all((folder / name).is_file() for name in literal)
    if not (folder / "config.json").is_file():
        return False
    if not any(pattern.endswith(".safetensors") for pattern in patterns):
        return True
    for single, index in [("model.safetensors", "model.safetensors.index.json")] + (
        [("pytorch_model.bin", "pytorch_model.bin.index.json")] if pickled else []
    ):
        if (folder / index).is_file():
            shards = set(json.loads((folder / index).read_text())["weight_map"].values())
            if all((folder / shard).is_file() for shard in shards):
                return True
        elif (folder / single).is_file():
            return True
    return False


def _repository(repo_id: str) -> Any:
    """What the hub says of `repo_id`. In a thread: name resolution has no time limit of its own."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(huggingface_hub.HfApi().model_info(repo_id, timeout=_ANSWER_S))
        except Exception as error:  # handed to the waiting thread below
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if not answer:
        raise LoadError(
            f"{repo_id}: the hub did not answer within {_ANSWER_S:.0f} s; {_offline_choices(repo_id)}"
        )
    if isinstance(answer[0], errors.HfHubHTTPError | errors.HFValidationError):
        raise answer[0]
    if isinstance(answer[0], Exception):
        raise LoadError(
            f"{repo_id}: cannot reach the hub ({_first_line(answer[0])}); {_offline_choices(repo_id)}"
        ) from answer[0]
    return answer[0]


def _offline_choices(repo_id: str) -> str:
    shape = shapes.nearest(repo_id.rpartition("/")[2])
    return f"offline, name a local folder, a .gguf file, random:{shape} (the shape without weights) or pocket"


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
