"""What CUDA's kernels allocate for themselves beside their output, where it differs from the meta device's."""

from typing import Any

import torch

_aten = torch.ops.aten

#: Workspace of cuBLASLt, which multiplies matrices and adds a bias. Torch 2.11, an H100.
CUBLASLT_BYTES = 2**20
#: Of a scan over any number of rows.
_SCAN_BYTES = 1279
#: Of a radix sort, beside its copies.
_SORT_BYTES = 18943


def before(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Bytes of the copies that a kernel makes of its inputs before it allocates its output."""
    if func is _aten.convolution.default and args[0].is_meta:
        return [tensor.nbytes for tensor in args[:2] if not tensor.is_contiguous()]
    return []


def after(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Bytes of the scratch that a kernel takes after its output."""
    if func is _aten.cumsum.default and args[0].is_meta:
        return [_SCAN_BYTES]
    if func in (_aten.sort.default, _aten.sort.stable) and args[0].is_meta:
        # The indices to be sorted along, then a radix sort's other half of keys and indices, and its counts.
        indices = args[0].numel() * 8
        return [indices, args[0].nbytes + indices + _SORT_BYTES]
    return []


def kept(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a library takes at its first call, after the output, and keeps."""
    if func is _aten.addmm.default and args[0].is_meta and args[0].ndim == 1:
        return CUBLASLT_BYTES
    return 0
