"""Which files of a model are brought to a node and read: safetensors or GGUF, pickles only when asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

from workers.models import LoadError

#: What a configuration and a tokenizer are made of.
METADATA = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
#: Without one of these transformers makes up an empty tokenizer from the configuration.
TOKENIZER = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`weights`: or only what describes the model. `code`: the model's own Python files. `pickles`: may be read."""

    weights: bool
    code: bool
    pickles: bool

    def choose(self, model: str, listing: Iterable[str]) -> list[str]:
        """The files to use of a model's top-level file names. Raises `LoadError` when weights are wanted in vain."""
        names = sorted(listing)
        chosen = matching(names, METADATA + (("*.py",) if self.code else ()))
        if not self.weights:
            return chosen
        safe, pickled = matching(names, SAFETENSORS), matching(names, PICKLED)
        if safe:
            return chosen + safe
        if not pickled:
            raise LoadError(f"{model}: has no weights in safetensors ({', '.join(SAFETENSORS)})")
        if not self.pickles:
            raise LoadError(
                f"{model}: its weights are pickled ({pickled[0]}), which are not read by default; convert them to "
                "safetensors, or set `allow_pickle: true` for this model"
            )
        return chosen + pickled


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
