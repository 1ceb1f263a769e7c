"""Settings of torch's CUDA caching allocator, as the axis `allocator` of a sweep names them."""

#: As torch, or the environment's PYTORCH_ALLOC_CONF, has it.
DEFAULT = "default"
EXPANDABLE = "expandable"
_NAMED = {DEFAULT: None, EXPANDABLE: "expandable_segments:True"}


def settings_text(allocator: str) -> str | None:
    """Return what PYTORCH_ALLOC_CONF would say; None: nothing is set. Any other text than a name stands for itself."""
    return _NAMED.get(allocator, allocator)


def refusal_on_cpu(allocator: str) -> str | None:
    """Return why a CPU cannot have it, in one line; None where nothing is set."""
    if allocator == DEFAULT:
        return None
    return f"allocator {allocator!r} sets torch's CUDA allocator, and this device is a CPU: leave it out"
