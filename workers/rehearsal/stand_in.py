"""Meta tensors that present themselves as CUDA tensors, so that Python chooses the paths it would choose on a card."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from workers.rehearsal.attention import attend

CUDA = torch.device("cuda", 0)
_META = torch.device("meta")
#: Numbers of a tensor on the host beyond which it takes no memory.
_LONG = 2**16


class CudaStandIn(TorchFunctionMode):
    """Within the context a meta tensor's `device` is `cuda:0`, and what is asked for on a CUDA device is made on meta.

    Attention allocates what its CUDA kernels would. Tensors on the CPU stay what they are: the host's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        special = _SPECIAL.get(func)
        if special is not None:
            return special(*args, **(kwargs or {}))
        if kwargs and _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _META}
        if func in _PLACING and any(_is_cuda(argument) for argument in args):
            args = tuple(_META if _is_cuda(argument) else argument for argument in args)
        if func in _PLACING and args[0].is_meta and _to_host(args[1:], kwargs or {}):
            return _zeros(args[0])
        return func(*args, **(kwargs or {}))


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _to_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    wanted = [*args, kwargs.get("device")]
    return any(device == "cpu" or device == torch.device("cpu") for device in wanted if device is not None)


def _device(tensor: torch.Tensor) -> torch.device:
    own = torch.Tensor.device.__get__(tensor)
    return CUDA if own.type == "meta" else own


def _on_host(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _zeros(tensor) if tensor.is_meta else tensor.cpu()


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Its copy on the host. A long text is one number, shown many times: nobody writes to it there."""
    if tensor.numel() > _LONG:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _split(tensor: torch.Tensor, split_size: int | list[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Where nobody knows how long the parts are (the tokens of each expert), they are equal, but for the first."""
    size = tensor.shape[dim]
    if isinstance(split_size, list) and tensor.is_meta and size and split_size and not any(split_size):
        part = size // len(split_size)
        split_size = [size - part * (len(split_size) - 1), *[part] * (len(split_size) - 1)]
    return tuple(torch.split(tensor, split_size, dim))


def _softmax(
    x: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """CUDA's kernel reads half precision and writes float32; elsewhere a copy comes first."""
    if x.is_meta and dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16):
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.softmax(x, -1 if dim is None else dim, dtype=dtype)


def _grouped_mm(input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """CUDA's kernel takes every dtype, the meta device's bfloat16 alone."""
    if input.is_meta and input.dtype != torch.bfloat16 and input.ndim == 2 and weight.ndim == 3:
        return input.new_empty(input.shape[0], weight.shape[2])
    return torch._grouped_mm(input, weight, *args, **kwargs)


_PLACING = (torch.Tensor.to, torch.Tensor.new_zeros, torch.Tensor.new_empty, torch.Tensor.new_full)
_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.Tensor.device.__get__: _device,
    torch.Tensor.is_cuda.__get__: lambda tensor: tensor.is_meta,  # type: ignore[attr-defined]
    torch.Tensor.cpu: _on_host,
    torch.Tensor.tolist: lambda tensor: _on_host(tensor).tolist(),
    torch.nn.functional.softmax: _softmax,
    torch._grouped_mm: _grouped_mm,
    torch.Tensor.split: _split,
    torch.nn.functional.scaled_dot_product_attention: attend,
}


@contextmanager
def standing_in() -> Iterator[None]:
    """Within the context, meta tensors are CUDA tensors, and torch.cuda answers for an H100 that does nothing."""
    before = {name: getattr(torch.cuda, name) for name in _ANSWERS}
    for name, answer in _ANSWERS.items():
        setattr(torch.cuda, name, answer)
    try:
        with CudaStandIn():
            yield
    finally:
        for name, answer in before.items():
            setattr(torch.cuda, name, answer)


class _Moment:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self, **_: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def elapsed_time(self, later: "_Moment") -> float:
        return 1.0


_ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "get_device_capability": lambda device=None: (9, 0),
    "current_stream": lambda device=None: None,
    "synchronize": lambda device=None: None,
    "Event": _Moment,
}
