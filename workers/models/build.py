"""From a configuration to a model: which class it is of, with which attention, and of a multimodal one the text part."""

import functools
from typing import TYPE_CHECKING, Any

import torch

from workers.cell import AUTO
from workers.models import LoadError
from workers.models.shard import Shard, draw
from workers.models.tp_plan import draw_by_plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Attention implementations by name, and the class attribute by which an architecture says that it has it.
_SUPPORT = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


def attention_options(attn_implementation: str) -> dict[str, str]:
    """What to tell transformers: nothing, where it chooses."""
    return {} if attn_implementation == AUTO else {"attn_implementation": attn_implementation}


def model_class(
    config: "PreTrainedConfig", *, trust_remote_code: bool = False
) -> "type[PreTrainedModel] | None":
    """The class of a model with this configuration: a causal language model, or the text part of a multimodal one.

    None where the configuration names a class in remote code, which is run only to build it. Raises `LoadError`.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as IMAGE_TEXT
    from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING as MULTIMODAL

    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None
    causal = CAUSAL.get(type(config), None)
    is_multimodal = config.get_text_config(decoder=True) is not config
    if causal is not None and (not is_multimodal or issubclass(causal.config_class, _text_class(config))):
        return causal
    whole = IMAGE_TEXT.get(type(config), None) or MULTIMODAL.get(type(config), None) or causal
    if whole is None or (causal is None and config.is_encoder_decoder):
        raise LoadError(f"{config.model_type!r} is no causal language model that transformers knows")
    return _text_only(whole) if is_multimodal else whole


def check_attention(
    config: "PreTrainedConfig", attn_implementation: str, *, trust_remote_code: bool = False
) -> None:
    """Raises `LoadError` where the architecture lacks the implementation that was named."""
    built = model_class(config, trust_remote_code=trust_remote_code)
    flag = _SUPPORT.get(attn_implementation)
    if built is not None and flag is not None and not getattr(built, flag, False):
        there = [name for name, has in _SUPPORT.items() if getattr(built, has, False)]
        raise LoadError(
            f"attn_implementation: {built.__name__} has no {attn_implementation}; it has "
            f"{', '.join(['eager', *there])}, or leave it at {AUTO}"
        )


def from_config(
    config: "PreTrainedConfig",
    dtype: torch.dtype,
    *,
    attn_implementation: str = AUTO,
    trust_remote_code: bool = False,
    shard: Shard | None = None,
) -> "PreTrainedModel":
    """Build the model on torch's current device, its weights drawn as the architecture draws them. `shard`: that of one
    process; no more than one whole matrix is ever held beside it.

    Raises `LoadError`, and whatever its constructors raise.
    """
    from transformers import AutoModelForCausalLM

    check_attention(config, attn_implementation, trust_remote_code=trust_remote_code)
    built: Any = model_class(config, trust_remote_code=trust_remote_code)
    options = attention_options(attn_implementation)
    if shard is not None and built is None:
        raise LoadError(f"{config.model_type}: its class is in code of its own, which is not cut")
    if shard is None and _has_auto_class(config, built):
        whole: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code, **options
        )
        _refuse_other_tasks(whole)
        return whole
    device = torch.get_default_device()
    with torch.device("meta"):  # what is left out shall not take memory first
        model: PreTrainedModel = built._from_config(config, dtype=dtype, **options)
    if shard is not None and shard.engine == "eager":
        draw_by_plan(model, shard.count, device)
    elif shard is not None:
        draw(model, shard, device)
    elif device.type != "meta":
        model.to_empty(device=device)
        model.init_weights()
    model.tie_weights()
    _refuse_other_tasks(model)
    return model


def from_files(
    config: "PreTrainedConfig", folder: Any, *, trust_remote_code: bool, **options: Any
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """The model of `folder` and what transformers noticed while it loaded (`missing_keys`, `mismatched_keys`, ...)."""
    from transformers import AutoModelForCausalLM

    built = model_class(config, trust_remote_code=trust_remote_code)
    loader: Any = built
    if _has_auto_class(config, built):
        loader, options = AutoModelForCausalLM, {**options, "trust_remote_code": trust_remote_code}
    model, found = loader.from_pretrained(folder, config=config, output_loading_info=True, **options)
    _refuse_other_tasks(model)
    return model, found


def _refuse_other_tasks(model: "PreTrainedModel") -> None:
    """BERT and its kin become decoders only if they are told: else each token sees those behind it. XLM is told otherwise."""
    if not model.can_generate():
        raise LoadError(f"{type(model).__name__} generates no text")
    if getattr(model.config, "causal", False):
        return
    if any(getattr(module, "is_decoder", None) is False for module in model.modules()):
        raise LoadError(
            f"{type(model).__name__} reads in both directions (`is_decoder` is false in its config), so that it is no "
            "causal language model; set it to true if it was trained as one"
        )


def _text_class(config: "PreTrainedConfig") -> type:
    return type(config.get_text_config(decoder=True))


def _has_auto_class(config: "PreTrainedConfig", built: Any) -> bool:
    """Whether transformers' own choice for this configuration is `built`, or a class in remote code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    return built is None or (type(config) in CAUSAL and not hasattr(built, "leaves_out_towers"))


@functools.cache
def _text_only(whole: Any) -> Any:
    """`whole` without what it has for pictures and sounds, which no text passes through."""

    class TextPart(whole):
        leaves_out_towers = True

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _drop_towers(self)

    # The same names: transformers knows by them what the weights of older files are called.
    TextPart.__name__, TextPart.__qualname__, TextPart.__module__ = (
        whole.__name__,
        whole.__qualname__,
        whole.__module__,
    )
    return TextPart


def _drop_towers(model: Any) -> None:
    kept = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]

    def prune(module: torch.nn.Module) -> None:
        for name, child in list(module.named_children()):
            if any(child is part for part in kept):
                continue
            if any(inner is part for inner in child.modules() for part in kept):
                prune(child)
            else:
                setattr(module, name, None)

    prune(model)
