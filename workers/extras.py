"""Names what a person installs where an optional package is missing: by its own name, wherever this project came from."""

_FOR_STORE = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
FOR_GGUF = "pip install gguf accelerate"


def for_store(scheme: str) -> str:
    """Return the remedy for a store that cannot be read here."""
    package = _FOR_STORE.get(scheme)
    return f"install the fsspec package for {scheme}" if package is None else f"pip install {package}"
