"""The law of a cell's caches as two numbers, bytes with each token and bytes once, and where they are from.

By rehearsal: the model itself, run without memory. By formula: arithmetic on its config. What both tell is held together by
`difference`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.predict.kv_formula import FormulaError, formula_law
from orchestrator.predict.memory import cache_bytes
from orchestrator.predict.model_shapes import CellShapes
from orchestrator.predict.rehearsed.kv_law import rehearsed_law
from orchestrator.predict.shape import dtype_bytes
from workers.cell import Cell, ModelRef
from workers.engines.sizes import BLOCK
from workers.kv_dtype import AUTO
from workers.modes.policies import FULL
from workers.rehearsal.passes import NotRehearsable

#: Two lengths beyond every window, of whole blocks.
_NEAR = 2**24 // BLOCK * BLOCK


@dataclass(frozen=True, slots=True)
class CacheLaw:
    """Of all sequences and both models: `constant_bytes + n * bytes_per_token`, n tokens of each sequence read, beyond every
    window. `source`: engine, where the mode's cache is the project's own.
    """

    bytes_per_token: int
    constant_bytes: int
    source: Literal["rehearsal", "formula", "engine"]


def cache_law(cell: Cell, shapes: CellShapes) -> CacheLaw | None:
    """Of each device. None where nothing tells, as of transformers' caches in fewer bits. Where the eager engine keeps every token as it is, the
    cache is transformers'; all others are written down here."""
    policy = cell.mode_spec.policy
    if (
        cell.devices > 1
        or cell.engine != "eager"
        or not policy.sees_all
        or policy.token_bytes is not FULL.token_bytes
    ):
        return _of_engine(cell, shapes)
    if cell.kv_dtype != AUTO:
        return None
    laws = [_of_model(name, cell) for name in _names(cell)]
    if any(law is None for law in laws):
        return None
    told = [law for law in laws if law is not None]
    return CacheLaw(
        sum(law.bytes_per_token for law in told),
        sum(law.constant_bytes for law in told),
        "rehearsal" if all(law.source == "rehearsal" for law in told) else "formula",
    )


def difference(ref: ModelRef, name: str) -> str | None:
    """In one line, where the formulas tell something else than the rehearsal. None: they agree, or one of them is silent."""
    try:
        rehearsed, formula = (
            rehearsed_law(_config(name, ref), ref.dtype),
            _by_formula(name, ref, 1),
        )
    except (NotRehearsable, FormulaError):
        return None
    if rehearsed[:2] == formula[:2]:
        return None
    return (
        f"{name}: KV cache by the formulas {formula[0]:,} bytes per token and {formula[1]:,} constant, by rehearsal "
        f"{rehearsed[0]:,} and {rehearsed[1]:,}; the rehearsal is used"
    )


def _of_model(name: str, cell: Cell) -> CacheLaw | None:
    try:
        return CacheLaw(
            *rehearsed_law(_config(name, cell.model), cell.model.dtype, cell.batch_size), "rehearsal"
        )
    except NotRehearsable:
        pass
    try:
        return CacheLaw(*_by_formula(name, cell.model, cell.batch_size), "formula")
    except FormulaError:
        return None


def _by_formula(name: str, ref: ModelRef, batch_size: int) -> tuple[int, int]:
    law = formula_law(_config(name, ref), dtype_bytes(ref.dtype))
    return batch_size * law.per_token, batch_size * law.constant


def _of_engine(cell: Cell, shapes: CellShapes) -> CacheLaw | None:
    given = [shape for shape in (shapes.target, shapes.draft) if shape is not None]
    if len(given) < len(_names(cell)):
        return None
    near, far = (sum(cache_bytes(cell, shape, n) for shape in given) for n in (_NEAR, 2 * _NEAR))
    per_token = (far - near) // _NEAR
    return CacheLaw(per_token, near - per_token * _NEAR, "engine")


def _names(cell: Cell) -> list[str]:
    drafts = cell.mode_spec.decoder.needs_draft and cell.model.draft is not None
    return [cell.model.target, *([cell.model.draft] if drafts and cell.model.draft else [])]


def _config(name: str, ref: ModelRef) -> Any:
    from workers.models import LoadError
    from workers.models.config import read_config

    try:
        return read_config(name, ref)
    except LoadError as error:
        raise NotRehearsable(str(error)) from error
