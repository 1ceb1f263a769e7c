"""Triton where there is one. Where there is none (no wheel, no GPU) the plain-torch twins serve."""

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    AVAILABLE = True
except ModuleNotFoundError:
    AVAILABLE = False

    class tl:  # type: ignore[no-redef]  # noqa: N801  (stands in for the module in annotations alone)
        constexpr = None

    def jit(function=None, **_options):
        return function if function is not None else lambda decorated: decorated


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
