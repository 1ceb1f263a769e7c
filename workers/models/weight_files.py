"""The files that hold a model's weights: which ones, and whether each is whole, from its first bytes alone."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from workers.models import LoadError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

#: What `git clone` leaves of a large file where Git LFS is not installed.
_LFS = b"version https://git-lfs"
_LENGTH_BYTES = 8


def weight_names(
    model: str, listing: Iterable[str], read: Callable[[str], bytes], *, pickles: bool
) -> tuple[str, ...]:
    """The files of `listing` that transformers would read, an index in front of its shards.

    `read`: the content of a listed file; asked for an index only. Raises `LoadError`.
    """
    names = set(listing)
    if SINGLE in names:
        return (SINGLE,)
    if INDEX in names:
        return _shards(model, INDEX, names, read)
    if PICKLED not in names and PICKLED_INDEX not in names:
        raise LoadError(
            f"{model}: has no weights in safetensors ({SINGLE}, or {INDEX} and the files that it names)"
        )
    if not pickles:
        found = PICKLED if PICKLED in names else PICKLED_INDEX
        raise LoadError(
            f"{model}: its weights are pickled ({found}), which are not read by default; convert them to "
            "safetensors, or set `allow_pickle: true` for this model"
        )
    return (PICKLED,) if PICKLED in names else _shards(model, PICKLED_INDEX, names, read)


def check_whole(model: str, paths: Iterable[Path]) -> None:
    """Raises `LoadError` for a file that is a Git LFS pointer, or a safetensors file that is cut short or no such file."""
    for path in paths:
        refuse_pointer(model, path)
        if path.suffix == ".safetensors" and (fault := _fault(path)):
            raise LoadError(f"{model}: {path.name} {fault}; download it again")


def refuse_pointer(model: str, path: Path) -> None:
    """Raises `LoadError` where `path` holds the name of a file in Git LFS instead of the file."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise LoadError(
                f"{model}: {path.name} is a Git LFS pointer, not the file: run `git lfs pull` in {path.parent}"
            )


def _shards(model: str, index: str, names: set[str], read: Callable[[str], bytes]) -> tuple[str, ...]:
    try:
        shards = sorted(set(json.loads(read(index))["weight_map"].values()))
        absent = [shard for shard in shards if shard not in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{model}: {index} is not an index of weights ({type(error).__name__}: {error})"
        ) from error
    if absent or not shards:
        raise LoadError(
            f"{model}: {index} names {len(shards)} files, {len(absent)} of which are not there"
            + (f", {absent[0]} among them" if absent else "")
        )
    return (index, *shards)


def tensor_bytes(path: Path) -> list[int]:
    """Bytes of each tensor of a safetensors file, by its header. Raises `LoadError` for a file that is none."""
    try:
        return [end - start for start, end in _offsets(path)[1]]
    except _DamagedHeader as error:
        raise LoadError(f"{path.name} {error}; download it again") from error


class _DamagedHeader(Exception):
    """What is wrong with the header, in words."""


def _offsets(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """(bytes behind the header; where each tensor begins and ends there).

    A file is a length, a JSON header of that length, then the tensors that it announces.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES + length:
            raise _DamagedHeader("is no safetensors file, or cut short within its header")
        try:
            header = json.loads(file.read(length))
            entries = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            return size - _LENGTH_BYTES - length, [(int(start), int(end)) for start, end in entries]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise _DamagedHeader("has a damaged header") from None


def _fault(path: Path) -> str | None:
    """What is wrong with a safetensors file."""
    try:
        there, tensors = _offsets(path)
    except _DamagedHeader as error:
        return str(error)
    missing = max((end for _, end in tensors), default=0) - there
    return f"is cut short: {missing:,} bytes are missing" if missing > 0 else None
