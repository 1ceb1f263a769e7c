"""Which files of a model are brought to a node and read: safetensors or GGUF, pickles only when asked for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

from workers.models.weight_files import weight_names

#: What a configuration and a tokenizer are made of.
METADATA = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
#: Without one of these transformers makes up an empty tokenizer from the configuration.
TOKENIZER = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`weights`: or only what describes the model. `code`: the model's own Python files. `pickles`: may be read."""

    weights: bool
    code: bool
    pickles: bool

    def choose(self, model: str, listing: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
        """The files to use of a model's top-level file names. `read`: the content of one of them.

        Raises `LoadError` when weights are wanted in vain.
        """
        names = sorted(listing)
        chosen = matching(names, METADATA + (("*.py",) if self.code else ()))
        if self.weights:
            chosen += [w for w in weight_names(model, names, read, pickles=self.pickles) if w not in chosen]
        return chosen


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
