"""Granite: Llama's layers, with multipliers of what is embedded, of what is added and of logits."""

from typing import Any

from workers.engines.graph.families.llama import attention_of, llama_layer
from workers.engines.graph.weights import Weights, norm, weights_of


def describe(model: Any) -> Weights:
    config, base = model.config, model.base_model
    return weights_of(
        model,
        (llama_layer(layer, attention_of(layer)) for layer in base.layers),
        norm(base.norm),
        embedding_scale=float(config.embedding_multiplier),
        added_scale=float(config.residual_multiplier),
        logit_scale=1.0 / config.logits_scaling,
    )
