"""Back to the residual's width: the sum of one or two products x W^T, cut along the summed axis into splits."""

import torch
import torch.nn.functional as F_

from workers.engine.rope import working
from workers.engine.weights import Linear


def mix_plain(parts: tuple[tuple[torch.Tensor, Linear], ...]) -> torch.Tensor:
    """[S, N, E] in working precision, one split per part; biases are left to `finish`."""
    return torch.stack([F_.linear(x_NI, linear.weight_OI).to(working(x_NI.dtype)) for x_NI, linear in parts])
