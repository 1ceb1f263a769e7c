"""TOVA (Oren et al., arXiv:2401.06104): keep the tokens to which the last query attends most.

After each pass the attention weights of its last query, averaged over all query heads, say which tokens of a layer stay; all
heads keep the same ones. The model's own attention computes what the layers give; the weights of one query are computed
beside it. B batch, H query heads, K key/value heads, G = H / K, C tokens in sight, D numbers of a head.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.engines.eager.evicting import EvictingCache, EvictingLayer, evicting
from workers.engines.eager.weigh import weigh
from workers.engines.session import ModeUnsupported


class TovaLayer(EvictingLayer):
    """Drops once the pass has attended."""

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self.is_waiting = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_waiting = True
        return super().update(key_states, value_states)

    def attended(self, weight_BC: torch.Tensor) -> None:
        """`weight_BC`: how much the last query of the pass attended to each token."""
        self.is_waiting = False
        self.keep(weight_BC[:, None])


@contextmanager
def noting_weights(model: PreTrainedModel, budget: int) -> Iterator[EvictingCache]:
    """Within the context, the attention of `model` tells the layers of the yielded cache what its last query saw.

    Raises `ModeUnsupported` at the end of the first pass of a model that attends in another way.
    """
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    registered = ALL_ATTENTION_FUNCTIONS.get(implementation)
    with evicting(model, TovaLayer, budget) as cache:

        def attend(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
        ) -> Any:
            own = registered or sys.modules[type(module).__module__].eager_attention_forward
            out = own(module, query, key, value, *rest, **named)
            layer = cache.layers[module.layer_idx]
            if isinstance(layer, TovaLayer):
                layer.attended(last_weights(query, key, **_of_scores(named)))
            return out

        def check(*_: object) -> None:
            if any(isinstance(layer, TovaLayer) and layer.is_waiting for layer in cache.layers):
                raise ModeUnsupported(
                    f"{type(model).__name__} cannot evict: not every layer attends through transformers' attention interface"
                )

        hook = model.register_forward_hook(check)
        try:
            with _attending(implementation, attend):
                yield cache
        finally:
            hook.remove()


@contextmanager
def _attending(implementation: str, attend: Callable[..., Any]) -> Iterator[None]:
    """Within the context, transformers attends by `attend` under the name of an implementation."""
    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(implementation)
    ALL_ATTENTION_FUNCTIONS[implementation] = attend
    try:
        yield
    finally:
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[implementation]
        else:
            ALL_ATTENTION_FUNCTIONS[implementation] = before


def _of_scores(arguments: dict[str, Any]) -> dict[str, Any]:
    """What of an attention's arguments changes its scores."""
    return {
        name: arguments[name] for name in ("scaling", "softcap", "s_aux") if arguments.get(name) is not None
    }


def last_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, C] in float32 at least: of the last query, the mean over heads. `query` [B, H, Q, D], `key` [B, K, C, D]."""
    batch, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    q_NGD = query[:, :, -1].reshape(batch * kv_heads, heads // kv_heads, dim).to(wide)
    products_NGC = q_NGD @ key.reshape(batch * kv_heads, -1, dim).to(wide).transpose(1, 2)
    nothing_hidden = products_NGC.new_zeros(1, products_NGC.shape[2])
    scale = dim**-0.5 if scaling is None else scaling
    weight_NGC = weigh(products_NGC, nothing_hidden, batch, scale, softcap, s_aux)
    return weight_NGC.view(batch, heads, -1).mean(1)
