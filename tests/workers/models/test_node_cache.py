"""The node's cache where the usual folder cannot be written, as in containers."""

from pathlib import Path

import pytest

from workers.models import Unavailable, hub
from workers.models.node_cache import build_once, built


def fill(folder: Path) -> None:
    (folder / "entry").write_text("filled")


def test_a_home_that_cannot_be_written_leaves_a_temporary_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("OOMLINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = build_once("kind/key", fill)
    assert (folder / "entry").read_text() == "filled"
    assert folder.is_relative_to(tmp_path)
    assert built("kind/key") == folder
    assert build_once("kind/key", pytest.fail) == folder


def test_a_named_cache_that_cannot_be_written_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unavailable, match=f"{tmp_path}/file/cache: Not a directory.*set OOMLINE_CACHE"):
        build_once("kind/key", fill)


def test_a_hub_cache_that_cannot_be_written_names_its_variable() -> None:
    assert "set HF_HOME" in hub._short(PermissionError(13, "Permission denied", "/home/hf"))
    assert "HF_HOME" not in hub._short(ConnectionError("no route"))
