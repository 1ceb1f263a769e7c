"""How many bytes a model's weights take in its files, told by the headers of the files alone.

Quantised weights lie on the device as they are stored: codes, scales and what is not quantised. Their config does not say how
many bytes that is, which differs with the method and its settings.
"""

from collections import Counter
from collections.abc import Iterable

from workers.cell import ModelRef
from workers.models import LoadError, hub
from workers.models.source import RANDOM, is_here, locate
from workers.models.weight_files import tensor_bytes, weight_names


def stored_tensors(name: str, ref: ModelRef) -> tuple[tuple[int, int], ...] | None:
    """(bytes, tensors of that many) of the safetensors files of `name`. Downloads no weights.

    None where they cannot be told: random weights, other formats, a hub that does not answer, a damaged file.
    """
    if name.startswith(RANDOM) or name.endswith(".gguf"):
        return None
    try:
        folder = locate(name, ref, weights=False).folder
        names = [path.name for path in folder.iterdir()]
        try:
            files = weight_names(name, names, lambda file: (folder / file).read_bytes(), pickles=False)
        except LoadError:
            return None if is_here(name) or "://" in name else _counted(hub.tensor_bytes(name))
        return _counted(
            size for file in files if file.endswith(".safetensors") for size in tensor_bytes(folder / file)
        )
    except LoadError:
        return None


def _counted(sizes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(Counter(sizes).items()))
