"""Computes what is reported of the tokens of a run: hashes, rates of speculation, the text at both ends."""

import hashlib

import numpy as np
import torch

from workers.cell import Cell
from workers.engines.session import Generated
from workers.text.corpus import decode

_TEXT_CHARS = 400
_TEXT_TOKENS = 200


def ids_sha256(ids_T: torch.Tensor) -> str:
    """Return the hash of the ids as little-endian int32."""
    return hashlib.sha256(ids_T.cpu().numpy().astype(np.dtype("<i4")).tobytes()).hexdigest()


def speculation_rates(result: Generated, produced: int) -> dict[str, float | None]:
    """Return `tokens_per_step` and `acceptance_rate`, None where the run had no rounds or no drafts."""
    from_rounds = produced if result.prompt_is_a_round else produced - 1
    return {
        "tokens_per_step": from_rounds / result.rounds if result.rounds else None,
        "acceptance_rate": (result.accepted or 0) / result.drafted if result.drafted else None,
    }


def text_ends(output_ids: tuple[int, ...], cell: Cell) -> tuple[str, str]:
    """Return the first and the last characters of the text, at most `_TEXT_CHARS` of each."""
    ends = output_ids[:_TEXT_TOKENS], output_ids[-_TEXT_TOKENS:]
    head, tail = decode(ends, cell.model.target, cell.model)
    return head[:_TEXT_CHARS], tail[-_TEXT_CHARS:]
