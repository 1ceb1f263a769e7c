"""Fixtures of the driver's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.predict.rehearsed import store


@pytest.fixture
def own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rehearsed answers of this test's own, on disk under `tmp_path` and in memory."""
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path / "answers"))
    store.forget()
    yield
    store.forget()
