"""Whether an engine streams a model exactly, layer by layer, against transformers' own forward.

The attention of all layers but one adds nothing. If that one sees everything, an engine that streams must give, after token
t, what transformers gives when it reads only the tokens that t sees. If it has a window of its own, or a state, it must give
what it gives without streaming. Neither reference knows of caches or of rotations.
"""

import copy
from typing import Any

import torch

from tests.workers.engines.eager.tiny import loaded
from tests.workers.models.families import VOCAB, tiny_model
from tests.workers.models.families import WINDOW as WINDOW_OF_ITS_OWN
from workers.cell import Cell, ModelRef
from workers.engines import open_session
from workers.models.load import LoadedModel
from workers.modes import MODES, Speculation, Streaming

SINKS, WINDOW = 3, 10
#: Ends a text.
END = 5
#: Where each layer has a window, if the config says so.
WINDOWED = ("mistral", "mixtral", "phi3", "starcoder2")
_OUTPUTS = ("o_proj", "dense", "out_proj", "wo")


def build(family: str, *, dtype: torch.dtype = torch.float64, windowed: bool = False, seed: int = 0) -> Any:
    """Its own kinds of layers, with weights large enough that greedy output does not repeat one token."""
    window = {"sliding_window": WINDOW_OF_ITS_OWN if windowed else None} if family in WINDOWED else {}
    model = tiny_model(family, **window)
    model.config._experts_implementation = "eager"  # the grouped product knows no float64
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draw).to(parameter) * 0.2
        parameter.data.add_(noise if parameter.ndim == 1 else noise * parameter.std())
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):  # zeros, which choose nothing
            buffer.add_(torch.randn(buffer.shape, generator=draw).to(buffer) * 0.2)
    return model.to(dtype)


def cell(mode: str, engine: str, *, gamma: int = 3, chunk: int | None = None) -> Cell:
    asked = MODES[mode]
    return Cell(
        model=ModelRef(target="tiny", draft="tiny"),
        mode=mode,
        engine=engine,  # type: ignore[arg-type]
        prompt_tokens=7,
        length=40,
        prefill_chunk=chunk,
        streaming=Streaming(sinks=SINKS, window=WINDOW) if asked.policy.parameters is Streaming else None,
        speculation=Speculation(gamma=gamma) if asked.decoder.parameters is Speculation else None,
    )


def text(count: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(5))


def logits(model: Any, mode: str, engine: str, ids_T: torch.Tensor) -> torch.Tensor:
    return open_session(cell(mode, engine), loaded(model), None).logits(ids_T)


def generates(
    target: Any,
    draft: Any,
    mode: str,
    engine: str,
    prompt_1T: torch.Tensor,
    heard: Any,
    chunk: int | None = None,
) -> Any:
    """40 tokens. `chunk`: tokens of the prompt that a pass reads."""
    both: list[LoadedModel | None] = [model and loaded(model, (END,)) for model in (target, draft)]
    assert both[0] is not None
    return open_session(cell(mode, engine, chunk=chunk), both[0], both[1]).generate(prompt_1T, 40, heard)


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def alone(model: Any, layer: int) -> Any:
    """The attention of every layer but one adds nothing."""
    model = copy.deepcopy(model)
    for module in model.base_model.modules():
        if getattr(module, "layer_idx", layer) != layer:
            for name in _OUTPUTS:
                output = getattr(module, name, None)
                if isinstance(output, torch.nn.Linear):
                    for parameter in output.parameters():
                        parameter.data.zero_()
    return model


def check_full_layer(model: Any, engine: str, bound: float) -> None:
    """`model`: one layer attends, to everything."""
    ids_T = text(40)
    found = logits(model, "streaming", engine, ids_T)
    for last in (2, SINKS + WINDOW, SINKS + WINDOW + 1, 25, 39):
        seen = [*range(min(SINKS, last + 1)), *range(max(SINKS, last - WINDOW), last + 1)]
        expected = model(input_ids=ids_T[None, seen], use_cache=False).logits[0, -1]
        assert gap(found[last], expected) < bound, last
    full = model(input_ids=ids_T[None], use_cache=False).logits[0]
    assert gap(found[-20:], full[-20:]) > 1e-4  # else nothing was dropped


def check_other_layer(model: Any, engine: str, bound: float) -> None:
    """`model`: one layer attends, to a window of its own, or has a state."""
    ids_T = text(40)
    full = model(input_ids=ids_T[None], use_cache=False).logits[0]
    assert gap(logits(model, "streaming", engine, ids_T), full) < bound
