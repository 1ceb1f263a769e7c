"""What PYTORCH_CUDA_ALLOC_CONF says about torch's CUDA caching allocator, as a typed value."""

import re
from dataclasses import dataclass

MiB = 2**20

_OPTION = re.compile(r"\s*(\w+)\s*:\s*(\[[^\]]*\]|[^,\[\]]+)\s*(?:,|$)")
#: Options of pinned host memory and of locking, which move no byte of the device.
_ELSEWHERE = ("pinned_", "release_lock_on_")
#: roundup_power2_divisions has one entry for each power of two from 1 MiB to 32 GiB.
_INTERVALS = 16


class AllocatorSettingsError(ValueError):
    """An option that the allocator model does not know, or a value that torch would refuse. One line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """The options of torch's CUDA caching allocator that decide where memory goes; torch's defaults.

    `roundup_power2_divisions`: per interval [2^i MiB, 2^(i + 1) MiB), i = 0 to 15, into how many steps it is
    divided; the first also covers smaller sizes, the last larger ones; empty: 512-byte rounding everywhere.
    `max_split_bytes`: blocks of this size and more are never split; None: all may be.
    `garbage_collection_threshold`: share of the limit above which unused segments are freed by age; 0: never.
    """

    expandable_segments: bool = False
    roundup_power2_divisions: tuple[int, ...] = ()
    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = 20 * MiB
    garbage_collection_threshold: float = 0.0
    large_segment_bytes: int = 20 * MiB

    @classmethod
    def parse(cls, text: str | None) -> "AllocatorSettings":
        """Read the content of PYTORCH_CUDA_ALLOC_CONF (PYTORCH_ALLOC_CONF); None and "" are torch's defaults.

        Raises `AllocatorSettingsError`.
        """
        found: dict[str, object] = {}
        rest = (text or "").strip()
        while rest:
            option = _OPTION.match(rest)
            if option is None:
                raise AllocatorSettingsError(f"not `option:value`: {rest!r}")
            found |= _read(option[1], option[2].strip())
            rest = rest[option.end() :]
        return cls(**found)  # type: ignore[arg-type]


def _read(name: str, value: str) -> dict[str, object]:
    """The field that an option sets. Raises `AllocatorSettingsError`."""
    if name.startswith(_ELSEWHERE) or (name, value) == ("backend", "native"):
        return {}
    try:
        if name == "expandable_segments":
            return {name: {"True": True, "False": False}[value]}
        if name == "roundup_power2_divisions":
            return {name: _divisions(value)}
        if name == "garbage_collection_threshold":
            threshold = float(value)
            if 0 < threshold < 1:
                return {name: threshold}
            raise ValueError
        field = {
            "max_split_size_mb": "max_split_bytes",
            "max_non_split_rounding_mb": "max_non_split_rounding_bytes",
            "large_segment_size_mb": "large_segment_bytes",
        }[name]
        return {field: int(value) * MiB}
    except (KeyError, ValueError):
        raise AllocatorSettingsError(f"{name}:{value}: not an option of the allocator model") from None


def _divisions(value: str) -> tuple[int, ...]:
    """`8`, or `[256:1,512:2,1024:4,>:8]`: sizes in MiB; the first value also holds below, `>` beyond the last."""
    if not value.startswith("["):
        return (_power_of_two(value),) * _INTERVALS
    divisions = [0] * _INTERVALS
    last = 0
    for index, pair in enumerate(value[1:-1].split(",")):
        size, _, count = pair.partition(":")
        divided = 0 if count.strip() == "0" else _power_of_two(count)
        if size.strip() == ">":
            divisions[last + 1 :] = [divided] * (_INTERVALS - last - 1)
            continue
        last = min(_power_of_two(size).bit_length() - 1, _INTERVALS - 1)
        if index == 0:
            divisions[:last] = [divided] * last
        divisions[last] = divided
    return tuple(divisions)


def _power_of_two(text: str) -> int:
    value = int(text)
    if value < 1 or value & (value - 1):
        raise ValueError
    return value
