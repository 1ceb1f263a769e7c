"""The next token of each row: repetition penalty, EOS suppressed and noted, argmax."""

import torch


def pick_plain(
    logits_NV: torch.Tensor,
    read_BM: torch.Tensor,
    seen_BV: torch.Tensor | None,
    penalty: float,
    eos_ids: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token [B, M], whether the choice would have been EOS [B, M]).

    Row m of `read_BM` has read tokens 0 .. m of this pass besides what `seen_BV` holds: a draft counts for the
    positions behind it, and a rejected one is forgotten with its row. Penalty as in transformers: a positive
    score is divided, a negative one multiplied (CTRL, arXiv:1909.05858). `seen_BV` None: no penalty.
    """
    B, M = read_BM.shape
    scores_BMV = logits_NV.view(B, M, -1)
    if seen_BV is not None:
        seen_BMV = seen_BV[:, None, :].expand_as(scores_BMV).clone()
        for m in range(M):
            seen_BMV[:, m].scatter_(1, read_BM[:, : m + 1], True)
        penalised_BMV = torch.where(scores_BMV > 0, scores_BMV / penalty, scores_BMV * penalty)
        scores_BMV = torch.where(seen_BMV, penalised_BMV, scores_BMV)
    if not eos_ids:
        token_BM = scores_BMV.argmax(-1)
        return token_BM, torch.zeros_like(token_BM, dtype=torch.bool)
    eos_E = torch.tensor(eos_ids, device=logits_NV.device)
    would_stop_BM = torch.isin(scores_BMV.argmax(-1), eos_E)
    return scores_BMV.index_fill(2, eos_E, -torch.inf).argmax(-1), would_stop_BM
