"""Warm and cold are what the kernel says."""

import os
from pathlib import Path

import pytest
import torch

from tests.workers.models.folders import save
from workers.cell import ModelRef
from workers.models.load import load_model
from workers.models.page_cache import resident_fraction


def drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_resident_fraction_follows_reads(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(8 << 20))
    drop(path)
    if resident_fraction([path]) == 1.0:
        pytest.skip("this file system keeps its files in memory")
    assert resident_fraction([path]) == 0.0
    assert resident_fraction([path]) == 0.0  # asking reads nothing
    path.read_bytes()
    assert resident_fraction([path]) == 1.0


def test_a_second_load_is_warm(tmp_path: Path) -> None:
    folder = save(tmp_path, vocab_size=8192)
    ref = ModelRef(target=str(folder))
    for path in folder.glob("*.safetensors"):
        drop(path)
    first = load_model(str(folder), ref, torch.device("cpu"))
    for path in folder.glob("*.safetensors"):
        path.read_bytes()
    second = load_model(str(folder), ref, torch.device("cpu"))
    assert (first.load_was_warm, second.load_was_warm) == (False, True)
