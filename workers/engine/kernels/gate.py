"""The gated MLP's first half in one launch: act(x G^T) * (x U^T)."""

import torch
import torch.nn.functional as F_

from workers.engine.kernels.linear import activate
from workers.engine.weights import Linear


def gate_plain(x_NE: torch.Tensor, gate: Linear, up: Linear, activation: str) -> torch.Tensor:
    """[N, I]."""
    gated = activate(F_.linear(x_NE, gate.weight_OI, gate.bias_O), activation)
    return gated * F_.linear(x_NE, up.weight_OI, up.bias_O)
