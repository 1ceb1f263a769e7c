"""What several prompts begin with."""

import torch


def begins_with(ids_BT: torch.Tensor, prefix_P: torch.Tensor) -> bool:
    """Whether each row begins with it, and has at least one more token."""
    count = len(prefix_P)
    return ids_BT.shape[1] > count and bool((ids_BT[:, :count] == prefix_P).all())
