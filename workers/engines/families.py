"""The model families that the graph engine runs, and that stream in both engines. The one list of them.

Free of torch. The eager engine runs the other modes with every causal language model of transformers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type` of transformers.

    `attention`: the attribute of a decoder layer that holds its attention. That attention rotates half-split pairs and
    goes through transformers' attention interface. `graph`: the module whose `describe(model)` reads its tensors.
    """

    model_type: str
    attention: str
    graph: str

    @property
    def modeling(self) -> str:
        """transformers' module of this family."""
        return f"transformers.models.{self.model_type}.modeling_{self.model_type}"


_GRAPH = "workers.engines.graph.families"

FAMILIES = {
    family.model_type: family
    for family in (
        Family("gpt_neox", "attention", f"{_GRAPH}.gpt_neox"),
        Family("llama", "self_attn", f"{_GRAPH}.llama"),
        Family("mistral", "self_attn", f"{_GRAPH}.llama"),
        Family("qwen2", "self_attn", f"{_GRAPH}.llama"),
    )
}

#: Rotary frequencies that do not depend on how long the text is. `dynamic` and `longrope` change them along the way; a key
#: that was rotated once, when it was written, cannot follow.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
