"""Up to three matrices read in one launch: y = act(x W^T + b), each with its own x, bias and activation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F_

from workers.engine.rope import working
from workers.engine.weights import Linear


@dataclass(frozen=True, slots=True)
class Job:
    x_NI: torch.Tensor
    linear: Linear
    activation: str | None = None


def linear_plain(jobs: tuple[Job, ...]) -> tuple[torch.Tensor, ...]:
    """One [N, O] per job."""
    return tuple(
        activate(F_.linear(job.x_NI, job.linear.weight_OI, job.linear.bias_O), job.activation) for job in jobs
    )


def head_plain(x_NE: torch.Tensor, head: Linear) -> torch.Tensor:
    """Logits [N, V] in working precision."""
    return F_.linear(x_NE, head.weight_OI, head.bias_O).to(working(x_NE.dtype))


def activate(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    match activation:
        case "gelu":
            return F_.gelu(y)
        case "tanh":
            return F_.gelu(y, approximate="tanh")
        case "silu":
            return F_.silu(y)
        case "relu":
            return F_.relu(y)
    return y
