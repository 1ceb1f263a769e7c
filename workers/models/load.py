"""Models on their device, ready to decode: weights where they belong, in the dtype asked for, once."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from workers.attempt import Phase
from workers.cell import ModelRef
from workers.error_kinds import Raised, of_exception
from workers.models import LoadError, kind_of
from workers.models.build import attention_options, check_attention, from_config, from_files
from workers.models.cache_tensors import cache_tensors
from workers.models.config import check_draft, max_positions, one_line, read_config, vocab_size
from workers.models.page_cache import resident_fraction
from workers.models.shard import Shard, cut
from workers.models.source import RANDOM, locate
from workers.models.tokenizer import load_tokenizer
from workers.models.tp_plan import load_options
from workers.models.weight_files import check_whole
from workers.outcome import Outcome

__all__ = ["LoadError", "LoadedModel", "check_draft", "load_model", "load_tokenizer", "read_config"]

#: A load counts as warm when at least this share of the weight files is in the page cache.
_WARM = 0.95
#: Of converted weights on a CPU: what is allocated at once, in bytes; where a tensor may begin, in elements.
_BLOCK_BYTES, _ALIGNED = 32 * 2**20, 32


@dataclass(frozen=True)
class LoadedModel:
    """`name` as asked for: random weights keep their `random:`. `weights_bytes`: each tensor once, buffers included.

    `eos_ids`: tokens that end a text. `max_positions`: the trained context, None where the architecture has none.
    `load_was_warm`: the weights were in the page cache; None for random weights and where the system cannot say.
    `shard`: what of the model is here; None: all of it.
    """

    model: PreTrainedModel
    name: str
    eos_ids: frozenset[int]
    max_positions: int | None
    vocab_size: int
    weights_bytes: int
    load_s: float
    load_was_warm: bool | None
    shard: Shard | None = None


def load_model(
    name: str, ref: ModelRef, device: torch.device, seed: int = 0, shard: Shard | None = None
) -> LoadedModel:
    """Load `name` onto `device` in `ref.dtype`, in eval mode, without gradients.

    Safetensors are mapped, not read: on a CPU in the files' own dtype the weights are the page cache's pages; on an
    accelerator each tensor is copied over and converted there, so that no second copy of the model is ever held.
    `seed`: of random weights. `shard`: only this part comes onto the device. Raises `LoadError`; memory errors pass through.
    """
    started = time.perf_counter()
    dtype: torch.dtype = getattr(torch, ref.dtype)
    if name.startswith(RANDOM):
        was_warm = None
        model = _build_random(name, ref, dtype, device, seed, shard)
    else:
        model, was_warm = _load_files(name, ref, dtype, device, shard)
    model.eval().requires_grad_(False)
    if model.dtype != dtype:
        raise LoadError(f"{name}: loaded as {model.dtype}, {dtype} was asked for")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return LoadedModel(
        model=model,
        name=name,
        eos_ids=eos_ids_of(model),
        max_positions=max_positions(model.config),
        vocab_size=vocab_size(model.config),
        weights_bytes=weights_bytes_of(model),
        load_s=time.perf_counter() - started,
        load_was_warm=was_warm,
        shard=shard,
    )


def _build_random(
    name: str, ref: ModelRef, dtype: torch.dtype, device: torch.device, seed: int, shard: Shard | None
) -> PreTrainedModel:
    """The architecture's own initialisation, drawn on the device in the dtype."""
    config = read_config(name, ref)
    cuda = [device] if device.type == "cuda" else []
    with _load_errors(name, config), torch.random.fork_rng(cuda), torch.device(device):
        torch.manual_seed(seed)
        return from_config(
            config,
            dtype,
            attn_implementation=ref.attn_implementation,
            trust_remote_code=ref.trust_remote_code,
            shard=shard,
        )


def _load_files(
    name: str, ref: ModelRef, dtype: torch.dtype, device: torch.device, shard: Shard | None
) -> tuple[PreTrainedModel, bool | None]:
    files = locate(name, ref, weights=True)
    config = read_config(name, ref)
    check_whole(name, files.weights)
    by_plan = shard is not None and shard.engine == "eager"
    disable_progress_bar()  # nobody sees it, and a thread with a stack of its own draws it
    # What its constructors would draw is overwritten or, where the files lack it, refused.
    with _load_errors(name, config), no_init_weights():
        check_attention(config, ref.attn_implementation, trust_remote_code=ref.trust_remote_code)
        resident = resident_fraction(files.weights)
        model, found = from_files(
            config,
            files.folder,
            trust_remote_code=ref.trust_remote_code,
            gguf_file=files.gguf,
            dtype=dtype if files.gguf or by_plan else "auto",
            use_safetensors=None if ref.allow_pickle else True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **attention_options(ref.attn_implementation),
            **(load_options(shard.count) if by_plan and shard else _quantised_options(config, device)),
        )
    if missing := sorted(found["missing_keys"]):
        raise LoadError(f"{name}: its files lack {len(missing)} of its tensors, {missing[0]} among them")
    if other := sorted(found["mismatched_keys"]):
        tensor, in_files, in_config = other[0]
        raise LoadError(
            f"{name}: {len(other)} of its tensors have other shapes in the files than in config.json: {tensor} is "
            f"{list(in_files)} there, {list(in_config)} here; the two do not belong together"
        )
    if not by_plan:
        if shard is not None:
            cut(model, shard)
        _place(model, dtype, device)
    return model, None if resident is None else resident >= _WARM


def _quantised_options(config: PreTrainedConfig, device: torch.device) -> dict[str, object]:
    """A quantiser wants to know the card beforehand: what it makes is not always moved afterwards."""
    is_quantised = getattr(config, "quantization_config", None) is not None
    return {"device_map": {"": device}} if is_quantised and device.type == "cuda" else {}


@contextlib.contextmanager
def _load_errors(name: str, config: PreTrainedConfig) -> Iterator[None]:
    """Whatever is wrong with a model becomes a `LoadError`; memory errors and GPU faults stay what they are."""
    try:
        yield
    except LoadError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        if of_exception(Raised.of(error), Phase.LOAD, is_cpu=True) is not Outcome.LOAD_ERROR:
            raise
        raise kind_of(error)(f"{name}: does not load: {_package(error, config)}{one_line(error)}") from error


def _package(error: Exception, config: PreTrainedConfig) -> str:
    """What to install, where that is what is missing, in front of the error's own words."""
    if not isinstance(error, ImportError):
        return ""
    quantization = getattr(config, "quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    quantised = f"quantised with {method}; " if method else ""
    if "GPU" in str(error):  # which some quantisers miss by the same exception
        return quantised
    return f"{quantised}a package is missing{f': pip install {error.name}' if error.name else ''}: "


def _place(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Move one tensor at a time to a card, then convert it there. Tensors kept in another dtype on purpose stay in it."""
    loaded_dtype = model.dtype
    if device.type == "cpu":
        if dtype != loaded_dtype:
            plain = (p for p in model.parameters() if not is_traceable_wrapper_subclass(p))
            _convert([p for p in plain if p.dtype == loaded_dtype], dtype)
    else:
        for parameter in model.parameters():
            data = parameter.data.to(device)
            parameter.data = data.to(dtype) if data.dtype == loaded_dtype else data
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    model.config.dtype = dtype


def _convert(parameters: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """In blocks, so that huge pages hold them: a tensor of its own is given its memory 4 KiB at a time, which takes
    longer than its conversion. What is held beside them is mapped files, and a block of what is not."""
    block: list[torch.nn.Parameter] = []
    for parameter in parameters:
        block.append(parameter)
        if sum(p.numel() for p in block) * dtype.itemsize >= _BLOCK_BYTES or parameter is parameters[-1]:
            sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in block]
            pieces = torch.empty(sum(sizes), dtype=dtype).split(sizes)
            for p, piece in zip(block, pieces, strict=True):
                p.data = piece[: p.numel()].view(p.shape).copy_(p.data)
            block.clear()


def eos_ids_of(model: PreTrainedModel) -> frozenset[int]:
    """Those of the vocabulary. Others cannot occur: -1 says that there is none, and some files name one too many."""
    told = model.generation_config or model.config.get_text_config(decoder=True)
    eos = getattr(told, "eos_token_id", None)
    ids = eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    return frozenset(int(i) for i in ids if 0 <= i < vocab_size(model.config))


def _tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def weights_bytes_of(model: PreTrainedModel) -> int:
    """Bytes of parameters and buffers; tied tensors share their memory and count once.

    Quantised tensors count as what they consist of, and what a quantiser keeps beside them (scales) counts too.
    """
    whole = list(_tensors(model))
    wrapped = [t for t in whole if is_traceable_wrapper_subclass(t)]
    kept_beside = [vars(p) for p in model.parameters() if not is_traceable_wrapper_subclass(p)]
    parts = cache_tensors(wrapped + kept_beside)
    plain = [t for t in whole if not is_traceable_wrapper_subclass(t)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in (*plain, *parts)}.values())
