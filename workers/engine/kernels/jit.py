"""Triton where there is one. Where there is none (no wheel, no GPU) the plain-torch twins serve."""

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    AVAILABLE = True
    #: Programmatic dependent launch (CUDA programming guide): a kernel is set up while the one before it ends.
    EARLY = tl.constexpr(False)
except ModuleNotFoundError:
    AVAILABLE = False

    class tl:  # type: ignore[no-redef]  # noqa: N801  (stands in for the module in annotations alone)
        constexpr = None
        value = False

    EARLY = tl

    def jit(function=None, **_options):
        return function if function is not None else lambda decorated: decorated


def launch_options() -> dict[str, bool]:
    """Of every launch: each kernel waits (`tiles.follow`) before it reads what another one wrote."""
    return {"launch_pdl": True} if EARLY.value else {}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
