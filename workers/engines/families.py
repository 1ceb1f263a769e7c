"""The model families that the graph engine runs. The one list of them.

Free of torch. The eager engine runs every causal language model of transformers; which of them stream it asks the model.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type` of transformers. `graph`: the module whose `describe(model)` reads its tensors."""

    model_type: str
    graph: str

    @property
    def modeling(self) -> str:
        """transformers' module of this family."""
        folder = self.model_type.removesuffix("_text")
        return f"transformers.models.{folder}.modeling_{folder}"


_GRAPH = "workers.engines.graph.families"

FAMILIES = {
    model_type: Family(model_type, f"{_GRAPH}.{module}")
    for model_type, module in (
        ("deepseek_v2", "deepseek"),
        ("deepseek_v3", "deepseek"),
        ("gemma2", "gemma"),
        ("gemma3_text", "gemma"),
        ("glm4", "glm4"),
        ("glm4_moe", "glm4_moe"),
        ("glm4_moe_lite", "deepseek"),
        ("gpt_neox", "gpt_neox"),
        ("gpt_oss", "gpt_oss"),
        ("granite", "granite"),
        ("llama", "llama"),
        ("mistral", "mistral"),
        ("mixtral", "mixtral"),
        ("olmo2", "olmo2"),
        ("olmo3", "olmo2"),
        ("olmoe", "olmoe"),
        ("phi3", "phi3"),
        ("qwen2", "llama"),
        ("qwen3", "qwen3"),
        ("qwen3_moe", "qwen3_moe"),
        ("smollm3", "smollm3"),
        ("stablelm", "stablelm"),
    )
}

#: Rotary frequencies that do not depend on how long the text is. `dynamic` and `longrope` change them along the way; a key
#: that was rotated once, when it was written, cannot follow.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def missing(config: Any) -> str | None:
    """Return what the graph engine lacks for a model's config, in words; None where its config tells of nothing."""
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type} (it runs {', '.join(FAMILIES)})"
    parameters = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in parameters.values() if isinstance(value, dict)]
    for rope_type in sorted({each.get("rope_type", "default") for each in by_kind or [parameters]}):
        if rope_type not in STATIC_ROPE:
            return (
                f"a key is rotated once, but rope type {rope_type!r} changes its frequencies with the length (works: "
                f"{', '.join(STATIC_ROPE)})"
            )
    return None
