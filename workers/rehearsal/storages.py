"""Every storage of the stand-in device, from its allocation to its release."""

import weakref
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from workers.rehearsal import kernels
from workers.rehearsal.passes import NotRehearsable

_aten = torch.ops.aten

#: Between two calls of `clear`. Half of it is what a few passes of the largest models of today come to; a config that is
#: damaged may ask for thousands of layers.
_MOST_EVENTS = 300_000
#: What a tensor's value would be, where Python asks and nobody knows: masks hold no padding.
_TRUE_OF = (_aten.all.default, _aten.all.dim, _aten.all.dims)
#: What these return nobody knows.
_EMPTY = (
    *(_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default),
    *(_aten.new_empty.default, _aten.new_empty_strided.default),
)
#: Integers and booleans of up to so many elements are computed where their inputs are known: a loop's end hangs on them.
_FEW = 64


#: The meta device refuses masks here.
_INDEXING = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)


class _Layout(NamedTuple):
    """What the meta device would answer: of one new tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class StorageLog(TorchDispatchMode):
    """Within the context, `events` gets n for a storage of n bytes, and ~i when the storage of event i is released.

    Views share a storage and count once. `given`: tensors that are there before, not counted, nor is their release.
    Python that reads a value gets it where it follows from Python's own numbers; else True of `all`, and False or 0 of
    everything else. `makers`: of each event that allocates the operation's name, "" for a release. `workspace_bytes`: of a
    library, 0 where none was called.
    """

    def __init__(self, given: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.events: list[int] = []
        self.makers: list[str] = []
        self._index: dict[int, int | None] = {}  # storage -> its event
        self._kept: dict[int, object] = {}  # weak references, and the storages that are given
        self._values: dict[int, torch.Tensor] = {}  # storage -> what it holds, where that is known
        self._layouts: dict[Hashable, tuple[_Layout | None, ...]] = {}  # one for an operation with one result
        self._has_workspace = False
        self.workspace_bytes = 0
        for tensor in given:
            storage = tensor.untyped_storage()
            self._index[storage._cdata] = None
            self._kept[storage._cdata] = storage  # so that its address is not reused

    def clear(self) -> None:
        """Forget all events: whatever is alive is given from now on. What operations return stays known."""
        self.events.clear()
        self.makers.clear()
        self._index = dict.fromkeys(self._index, None)
        self._has_workspace = False

    def take_workspace(self) -> None:
        """What a library takes at its first call, and keeps: `workspace_bytes`, once after `clear`."""
        if not self._has_workspace:
            self.keep(self.workspace_bytes)
            self._has_workspace = True

    def keep(self, size: int) -> None:
        """A library takes `size` bytes, and keeps them."""
        self._take(size, "workspace")

    def event_of(self, tensor: torch.Tensor) -> int | None:
        """The event that allocated the tensor's storage; None where it was given."""
        return self._index.get(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return self._value(args[0])
        held = [self._take(size, "copy") for size in kernels.before(func, args)]
        out = self._run(func, args, kwargs or {})
        self._follow(func, args, kwargs or {}, out)
        held += [self._take(size, "scratch") for size in kernels.after(func, args)]
        if size := kernels.kept(func, args):
            self.workspace_bytes = size
            self.take_workspace()
        for index in reversed(held):
            self._release(index)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's result. One like an earlier one is made from its layout: far faster than asking again."""
        if func in _INDEXING and args[0].is_meta:
            args = (args[0], [self._places(index) for index in args[1]], *args[2:])
        if func is _aten.nonzero.default and args[0].is_meta:
            out = args[0].new_empty((0, args[0].ndim), dtype=torch.int64)
            self._see(out, func)
            return out
        key = None if func._schema.is_mutable else _key(func, args, kwargs)
        layouts = self._layouts.get(key) if key is not None else None
        if layouts is not None:
            outs = [self._made(layout, func) for layout in layouts]
            return outs[0] if len(outs) == 1 else tuple(outs)
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            if out.is_meta and self._see(out, func) and key is not None:
                self._layouts[key] = (_layout(out),)
            return out
        is_plain = isinstance(out, tuple) and len(out) > 1 and key is not None
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                is_plain = self._see(tensor, func) and is_plain
            else:
                is_plain = is_plain and tensor is None
        if is_plain:
            self._layouts[key] = tuple(None if tensor is None else _layout(tensor) for tensor in out)
        return out

    def _places(self, index: torch.Tensor | None) -> torch.Tensor | None:
        """A mask as the place that it picks, of one dimension: all of them, where nobody knows its values."""
        if index is None or index.dtype != torch.bool or index.ndim != 1 or not index.is_meta:
            return index
        known = self._known(index)
        count = index.numel() if known is None else int(known.sum())
        return torch.empty(count, dtype=torch.int64, device="meta")

    def _made(self, layout: _Layout | None, func: Any) -> torch.Tensor | None:
        if layout is None:
            return None
        out = torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device="meta")
        self._see(out, func)
        return out

    def _see(self, tensor: torch.Tensor, func: Any) -> bool:
        """Whether its storage is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._index:
            return False
        size = storage.nbytes()
        self._index[key] = self._take(size, func._schema.name) if size else None

        def released(_: object) -> None:
            index = self._index.pop(key)
            self._values.pop(key, None)
            del self._kept[key]
            if index is not None:
                self._release(index)

        self._kept[key] = weakref.ref(storage, released)
        return True

    def _take(self, size: int, maker: str) -> int:
        if len(self.events) > _MOST_EVENTS:
            raise NotRehearsable(f"a few passes take and free memory more than {_MOST_EVENTS:,} times")
        self.events.append(size)
        self.makers.append(maker)
        return len(self.events) - 1

    def _release(self, index: int) -> None:
        self.events.append(~index)
        self.makers.append("")

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Compute what `out` holds, where it is little and follows from what is known."""
        if func._schema.is_mutable:
            for tensor in args[:1]:
                if isinstance(tensor, torch.Tensor):
                    self._values.pop(tensor.untyped_storage()._cdata, None)
            return
        if (
            not isinstance(out, torch.Tensor)
            or out.numel() > _FEW
            or out.is_floating_point()
            or not out.is_meta
            or func in _EMPTY
        ):
            return
        key = out.untyped_storage()._cdata
        known = [
            self._known(argument) if isinstance(argument, torch.Tensor) else argument for argument in args
        ]
        if all(
            argument is not None or given is None for argument, given in zip(known, args, strict=True)
        ) and not any(
            isinstance(argument, list | tuple) and any(isinstance(item, torch.Tensor) for item in argument)
            for argument in args
        ):
            self._values[key] = func(
                *known, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})}
            )
        elif func in _TRUE_OF:
            self._values[key] = torch.ones(out.shape, dtype=out.dtype)

    def _known(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What a tensor holds. None: not known."""
        if not tensor.is_meta:
            return tensor
        value = self._values.get(tensor.untyped_storage()._cdata)
        if value is None or value.shape == tensor.shape:
            return value
        if value.numel() * value.element_size() != tensor.untyped_storage().nbytes():
            return None
        return value.flatten().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _value(self, tensor: torch.Tensor) -> bool | int | float:
        known = self._known(tensor)
        if known is not None:
            return known.item()
        return False if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


def _layout(tensor: torch.Tensor) -> _Layout:
    return _Layout(tensor.shape, tensor.stride(), tensor.dtype)


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Equal for calls whose results have the same layout. None: not known to be so."""
    parts: list[Hashable] = [func]
    for argument in (*args, *kwargs.items()):
        if isinstance(argument, torch.Tensor):
            if not argument.is_meta and argument.ndim:
                return None
            parts.append((argument.shape, argument.stride(), argument.dtype))
        elif isinstance(argument, list | tuple):
            for item in argument:
                if isinstance(item, torch.Tensor):
                    parts.append((item.shape, item.stride(), item.dtype))
                elif isinstance(item, list):
                    parts.append(tuple(item))
                else:
                    parts.append((type(item), item))
            parts.append(len(argument))
        else:
            parts.append((type(argument), argument))
    return tuple(parts)
