"""transformers' own caches that keep keys and values in fewer bits, or in the machine's memory: as people run them.

`QuantizedCache` gives attention a whole copy in the model's dtype at every step, one layer at a time, and int8 and int4 keep the
newest 128 tokens as they are. An offloaded `DynamicCache` keeps one layer on the device and fetches the next beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache

from workers.cell import Cell
from workers.engines.session import ModeUnsupported
from workers.kv_dtype import AUTO, DEVICE
from workers.models.config import one_line
from workers.modes import Layout

#: kv_dtype -> what stores it: backend of transformers, the module that it needs, its package, its options; the first that is there.
_BACKENDS: dict[str, tuple[tuple[str, str, str, dict[str, int]], ...]] = {
    "fp8": (("fp8", "torch", "torch", {}),),
    "int8": (("hqq", "hqq", "hqq", {"nbits": 8, "axis_key": 1, "axis_value": 1}),),
    "int4": (
        ("hqq", "hqq", "hqq", {"nbits": 4, "axis_key": 1, "axis_value": 1}),
        ("quanto", "optimum.quanto", "optimum-quanto", {"nbits": 4}),
    ),
}


def is_stored_otherwise(cell: Cell) -> bool:
    return cell.kv_dtype != AUTO or cell.kv_placement != DEVICE


def refuse_stored(cell: Cell) -> None:
    """Raises `ModeUnsupported` where no model has keys and values stored as the cell asks."""
    if not is_stored_otherwise(cell):
        return
    policy = cell.mode_spec.policy
    if policy.layout is Layout.FIXED and cell.kv_dtype != AUTO:
        raise ModeUnsupported(
            f"transformers' static cache keeps the model's dtype: ask for kv_dtype {cell.kv_dtype} in baseline"
        )
    if not policy.sees_all:
        raise ModeUnsupported(
            f"mode {cell.mode} keeps its cache itself: kv_dtype and kv_placement are of baseline in the eager engine"
        )
    if cell.kv_dtype != AUTO and cell.kv_placement != DEVICE:
        raise ModeUnsupported("transformers has no cache that is both quantised and offloaded: ask for one")
    if cell.mode_spec.decoder.verifies:
        raise ModeUnsupported(
            "transformers' quantised and offloaded caches do not take back a rejected token rightly: use them without +spec"
        )


def refuse_missing_package(cell: Cell) -> None:
    """Raises `ModeUnsupported` where this machine lacks the package that stores keys and values as the cell asks."""
    if cell.kv_dtype != AUTO:
        _backend(cell.kv_dtype)


@contextmanager
def stored(model: PreTrainedModel, cell: Cell) -> Iterator[Cache]:
    """Every token, in the cell's `kv_dtype`, at its `kv_placement`. Raises `ModeUnsupported`, in one line."""
    refuse_stored(cell)
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    try:
        if cell.kv_dtype == AUTO:
            cache: Cache = DynamicCache(config=config, offloading=True)
        else:
            backend, options = _backend(cell.kv_dtype)
            cache = QuantizedCache(backend, config, **options)
    except (
        ValueError,
        ImportError,
        TypeError,
    ) as error:  # what a release lacks, layers that keep something else
        raise ModeUnsupported(f"{name}, kv_dtype {cell.kv_dtype}: {one_line(error)}") from error
    yield cache


def _backend(kv_dtype: str) -> tuple[str, dict[str, int]]:
    for backend, module, _, options in _BACKENDS[kv_dtype]:
        if _is_there(module):
            return backend, options
    packages = " or ".join(package for _, _, package, _ in _BACKENDS[kv_dtype])
    raise ModeUnsupported(f"kv_dtype {kv_dtype} needs a package that is not installed: {packages}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
