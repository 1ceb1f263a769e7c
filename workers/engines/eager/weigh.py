"""From products of queries and keys to the weights of their values: scale, soft cap, mask, learned sinks.

B batch, H query heads, K key/value heads, G = H / K, N = B * K, Q tokens, M = G * Q, C keys.
"""

import torch


def weigh(
    products_NMC: torch.Tensor,
    bias: torch.Tensor,
    batch: int,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """[N, M, C]. `bias` [M, C], or [1, C]: 0 where a query sees a key, -inf where not.

    `softcap` c makes of a score s c * tanh(s / c). `s_aux` [H]: learned sinks, one more score in each softmax, with no
    value (gpt-oss).
    """
    if softcap is None:
        scores_NMC = torch.add(bias, products_NMC, alpha=scaling)
    else:
        scores_NMC = bias + softcap * torch.tanh(products_NMC * (scaling / softcap))
    if s_aux is None:
        return scores_NMC.softmax(-1)
    count, rows, _ = scores_NMC.shape
    heads = count // batch
    learned_KG1 = s_aux.to(scores_NMC.dtype).view(heads, -1, 1)
    learned_KM = learned_KG1.expand(-1, -1, rows // learned_KG1.shape[1]).reshape(heads, rows)
    learned_NM1 = learned_KM.repeat(batch, 1)[..., None]
    return torch.cat([scores_NMC, learned_NM1], -1).softmax(-1)[..., :-1]
