"""Triton where there is one. Where there is none (no wheel, no GPU) the plain-torch twins serve."""

import functools

import torch

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


@functools.cache
def launch_options() -> dict[str, bool]:
    """Of every launch. PDL: a kernel is set up, and what no kernel writes is read, while the ones before it still
    run (programmatic dependent launch, CUDA programming guide; from Hopper on); `tiles.wait_for_previous` is where it waits.
    """
    early = (
        torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (9, 0)
        and not triton.knobs.runtime.interpret
    )
    return {"PDL": True, "launch_pdl": True} if early else {"PDL": False}


@functools.cache
def tickets(count: int, device: torch.device) -> torch.Tensor:
    """Counters of programs that have arrived: zero before and after each launch. Kernels share them: each is done with
    them before the next has waited for it."""
    return torch.zeros(count, dtype=torch.int32, device=device)


def first_launch_options() -> dict[str, bool]:
    """Of the first kernel of a pass: it is set up only once all before it is done, so that the kernels behind it may read
    what an earlier pass wrote before they wait."""
    return {"PDL": launch_options()["PDL"]}


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """An H100's where there is no GPU, so that kernels are cut alike when they are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
