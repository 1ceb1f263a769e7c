"""The coverage matrix: what each family of causal language models of transformers can do here, and why where it cannot.

Measured with a tiny random model of each family (`python -m tests.benchmarks.families`) and kept as data.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "coverage.json"
#: What is asked of each family, in this order. `kv_law`: the cache's bytes by rehearsal are those that were counted.
COLUMNS = ("loads", "baseline", "score", "logits", "kv_law", "speculation", "streaming", "graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyCoverage:
    """`model_type` of a config. `causal`: transformers lists it as a causal language model, else as a multimodal one.

    `architecture`: the class that is built, None where none is. `reasons`: column -> why the family has not what the column
    says; the other columns it has.
    """

    model_type: str
    causal: bool = True
    architecture: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def has(self, column: str) -> bool:
        return column not in self.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """`transformers`: the version that it was measured with."""

    transformers: str
    families: tuple[FamilyCoverage, ...]

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Families of the installed transformers that are not in the matrix."""
        measured = {family.model_type for family in self.families}
        return tuple(name for name in installed_families() if name not in measured)


def causal_families() -> frozenset[str]:
    """The `model_type` of every causal language model that the installed transformers knows."""
    from transformers.models.auto import modeling_auto as auto

    return frozenset(auto.MODEL_FOR_CAUSAL_LM_MAPPING._model_mapping)


def installed_families() -> tuple[str, ...]:
    """Those, and the multimodal models around which there may be a text part, in the order of the alphabet."""
    from transformers.models.auto import modeling_auto as auto

    wrappers = (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING)
    return tuple(sorted(causal_families().union(*(mapping._model_mapping for mapping in wrappers))))


def installed_version() -> str:
    """Of transformers."""
    return importlib.metadata.version("transformers")


def read_coverage() -> Coverage:
    """The matrix that ships with the package."""
    content: dict[str, Any] = json.loads(DATA.read_text())
    return Coverage(
        transformers=content["transformers"],
        families=tuple(
            FamilyCoverage(model_type=name, **found) for name, found in content["families"].items()
        ),
    )


def write_coverage(coverage: Coverage) -> None:
    """Replace the matrix that ships with the package."""
    families = {
        family.model_type: {
            "causal": family.causal,
            "architecture": family.architecture,
            "reasons": dict(family.reasons),
        }
        for family in sorted(coverage.families, key=lambda family: family.model_type)
    }
    content = {"transformers": coverage.transformers, "families": families}
    DATA.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
