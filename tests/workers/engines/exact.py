"""transformers in float64 throughout: what it computes in float32 whatever the model's dtype (angles, norms, softmax) would
hide everything below 1e-7."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Float64(TorchDispatchMode):
    """Within the context, what would become float32 becomes float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        wide = {torch.float32: torch.float64}
        named = {
            name: wide.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        return func(*(wide.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args), **named)
