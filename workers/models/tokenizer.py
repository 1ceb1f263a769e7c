"""A model's tokenizer, and the key under which what it made is kept."""

import hashlib

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.cell import ModelRef
from workers.models import LoadError, kind_of
from workers.models.config import one_line
from workers.models.source import RANDOM, Files, locate
from workers.models.wanted import METADATA, TOKENIZER, matching


def load_tokenizer(name: str, ref: ModelRef) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`; the pocket pair's stands in for `random:` models, which have none.

    Raises `LoadError`.
    """
    files = _files(name, ref)
    if not files.gguf and not matching((path.name for path in files.folder.iterdir()), TOKENIZER):
        raise LoadError(f"{name}: has no tokenizer (none of {', '.join(TOKENIZER)})")
    try:
        return AutoTokenizer.from_pretrained(
            files.folder, gguf_file=files.gguf, trust_remote_code=ref.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # anything may be wrong with a file that a person names
        raise kind_of(error)(f"{name}: no usable tokenizer in {files.folder}: {one_line(error)}") from error


def tokenizer_key(name: str, ref: ModelRef) -> str:
    """Equal for equal tokenizers: a hash of the files that define it (a GGUF file: its path, size and time)."""
    files = _files(name, ref)
    digest = hashlib.sha256()
    if files.gguf:
        path = files.folder / files.gguf
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    else:
        for file in matching(sorted(path.name for path in files.folder.iterdir()), METADATA):
            if file not in ("config.json", "generation_config.json") and not file.endswith(".index.json"):
                content = (files.folder / file).read_bytes()
                digest.update(f"{file} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _files(name: str, ref: ModelRef) -> Files:
    return locate("pocket" if name.startswith(RANDOM) else name, ref, weights=False)
