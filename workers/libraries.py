"""The versions of the libraries that decide what a pass allocates."""

import importlib.metadata
from functools import cache

_LIBRARIES = ("torch", "transformers")


@cache
def library_versions() -> str:
    """Of this process, for example `torch 2.11.0, transformers 5.17.0`. A build's own suffix (`+cu130`) is left out."""
    found = ((name, importlib.metadata.version(name).partition("+")[0]) for name in _LIBRARIES)
    return ", ".join(f"{name} {version}" for name, version in found)
