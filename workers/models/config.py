"""A model's configuration, without its weights: what the driver plans with."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from workers.cell import ModelRef
from workers.models import LoadError, Unavailable, kind_of
from workers.models.gguf_header import complete
from workers.models.shapes import nearest, shapes
from workers.models.source import RANDOM, locate
from workers.models.weight_files import refuse_pointer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: How configurations name how deep a model is, and what none of them exceeds.
_DEPTHS = frozenset(
    (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "num_blocks",
        "decoder_layers",
        "encoder_layers",
    )
)
_MOST_LAYERS = 1_000


def read_config(name: str, ref: ModelRef) -> "PreTrainedConfig":
    """The configuration of `name` (see `workers.models.source` for names). Touches no weights but a GGUF file's header.

    Raises `LoadError`.
    """
    from transformers import AutoConfig  # seconds, which not every command needs

    try:
        if name.startswith(RANDOM):
            return _random_config(name.removeprefix(RANDOM), ref)
        files = locate(name, ref, weights=False)
        if files.gguf is None:
            _check_file(name, files.folder / "config.json")
        config = AutoConfig.from_pretrained(
            files.folder, gguf_file=files.gguf, trust_remote_code=ref.trust_remote_code, local_files_only=True
        )
        if files.gguf is not None:
            complete(name, config, files.folder / files.gguf)
        return config
    except LoadError:
        raise
    except Exception as error:  # anything may be wrong with a file that a person names
        raise kind_of(error)(f"{name}: no usable configuration: {one_line(error)}") from error


def check_draft(target: "PreTrainedConfig", draft: "PreTrainedConfig") -> None:
    """Refuse a draft that cannot speak the target's tokens.

    Equal `vocab_size` is asked, padding included: verification compares the two models' ids and logits one to one.
    (Pythia 2.8b, 410m and 160m agree on 50,304; 6.9b and 12b do not.) Raises `LoadError`.
    """
    sizes = vocab_size(target), vocab_size(draft)
    if sizes[0] != sizes[1]:
        raise LoadError(
            f"draft: its vocabulary has {sizes[1]} entries, the target's {sizes[0]} (padding included); "
            "name a draft with the target's vocabulary"
        )


def vocab_size(config: "PreTrainedConfig") -> int:
    """Entries of the vocabulary, padding included. Raises `LoadError` where the configuration has no such number."""
    found = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(found, int) or found < 1:
        raise LoadError(f"no usable configuration: vocab_size is {found!r}")
    return found


def max_positions(config: "PreTrainedConfig") -> int | None:
    """The trained context, where the architecture has one."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _check_file(name: str, path: Path) -> None:
    if not path.is_file():
        raise LoadError(f"{name}: has no config.json: it is no folder of a model in transformers' format")
    refuse_pointer(name, path)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise LoadError(f"{name}: no usable configuration: config.json is not JSON ({error})") from error
    _refuse_absurd(name, content)


def _refuse_absurd(name: str, content: object) -> None:
    """A configuration is made into lists as long as the model is deep before anything looks at its numbers."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _DEPTHS and isinstance(value, int | float) and not value <= _MOST_LAYERS:
                raise LoadError(
                    f"{name}: no usable configuration: {key} is {value:,}, more than {_MOST_LAYERS:,}"
                )
            _refuse_absurd(name, value)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _random_config(name: str, ref: ModelRef) -> "PreTrainedConfig":
    from transformers import AutoConfig

    if name in shapes():
        shape = dict(shapes()[name]["config"])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        _check_file(f"{RANDOM}{name}", folder / "config.json")
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=ref.trust_remote_code, local_files_only=True
        )
    kind = (
        Unavailable if folder.is_absolute() and not folder.exists() else LoadError
    )  # it may be on another node
    raise kind(
        f"{RANDOM}{name}: neither a known shape nor a folder with a config.json; the nearest shape is "
        f"{RANDOM}{nearest(name)} (of {', '.join(shapes())})"
    )
