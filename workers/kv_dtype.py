"""How keys and values are stored, as the axes `kv_dtype` and `kv_placement` of a sweep name it. Free of torch."""

from dataclasses import dataclass

#: As the model computes them.
AUTO = "auto"
#: In the device's memory.
DEVICE = "device"
#: In the machine's memory but for the layer in use.
HOST = "host"
KV_PLACEMENTS = (DEVICE, HOST)
#: Tokens whose keys share a scale in each channel.
GROUP = 64


@dataclass(frozen=True, slots=True)
class StoredAs:
    """A dtype of stored keys and values. `bits` of a number; `largest` code; `has_zeros`: an offset beside each scale."""

    name: str
    bits: int
    largest: float
    has_zeros: bool = False

    def group_bytes(self, head_dim: int, width: int) -> int:
        """Bytes of `GROUP` tokens' keys and values in one head, a multiple of 16. `width`: bytes of a scale.

        Codes; of keys a scale for each channel, of values one for each token (KIVI, arXiv:2402.02750).
        """
        codes = 2 * GROUP * head_dim * self.bits // 8
        scales = (head_dim + GROUP) * width * (2 if self.has_zeros else 1)
        return -(-(codes + scales) // 16) * 16


INT8 = StoredAs("int8", 8, 127)
INT4 = StoredAs("int4", 4, 15, has_zeros=True)
#: torch.float8_e4m3fn
FP8 = StoredAs("fp8", 8, 448)
STORED_AS = {stored.name: stored for stored in (FP8, INT8, INT4)}
KV_DTYPES = (AUTO, *STORED_AS)


def refusal_on_cpu(kv_placement: str) -> str | None:
    """Return why a CPU cannot have it, in one line; None where it can."""
    if kv_placement == DEVICE:
        return None
    return f"kv_placement {kv_placement} moves keys and values off the device, and this device is a CPU: leave it out"
