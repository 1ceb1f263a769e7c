"""Cards by the names that people use, with the memory that a process can see."""

import difflib
import re
from dataclasses import dataclass

from orchestrator.predict.device import DeviceProfile
from orchestrator.spec import parse_bytes
from orchestrator.spec_error import SpecError
from workers.attempt import Device
from workers.units import GiB, MiB

#: What the driver keeps of an H100 (driver 580). Taken for a card that is named by its size.
_RESERVE_BYTES = 480 * MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class CardType:
    """`kind`: as NVML names it, or the beginning of that. `total_bytes`: before the driver's `reserve_bytes`."""

    name: str
    kind: str
    total_bytes: int
    reserve_bytes: int

    def profile(self) -> DeviceProfile:
        stand_in = Device(
            kind=self.kind,
            uuid=self.name,
            node="fit",
            total_bytes=self.total_bytes,
            reserve_bytes=self.reserve_bytes,
        )
        return DeviceProfile.of(stand_in)


def _card(name: str, kind: str, total_mib: int, visible_gib: float) -> CardType:
    """`total_mib`: as nvidia-smi prints it. `visible_gib`: what torch's out-of-memory message calls the capacity."""
    total = total_mib * MiB
    return CardType(
        name=name, kind=kind, total_bytes=total, reserve_bytes=max(0, total - round(visible_gib * GiB))
    )


#: H100 and H200: measured (`docs/results/`). The others: as nvidia-smi and torch's messages tell in public reports; the
#: driver's share differs by some hundred MiB between drivers.
CARDS = (
    _card("T4", "Tesla T4", 15_360, 14.75),
    _card("L4", "NVIDIA L4", 23_034, 22.03),
    _card("RTX 3090", "NVIDIA GeForce RTX 3090", 24_576, 23.68),
    _card("RTX 4090", "NVIDIA GeForce RTX 4090", 24_564, 23.64),
    _card("RTX 5090", "NVIDIA GeForce RTX 5090", 32_607, 31.36),
    _card("A100 40GB", "NVIDIA A100-SXM4-40GB", 40_960, 39.39),
    _card("L40S", "NVIDIA L40S", 46_068, 44.40),
    _card("A100 80GB", "NVIDIA A100-SXM4-80GB", 81_920, 79.15),
    _card("H100", "NVIDIA H100 80GB HBM3", 81_559, 79.18),
    _card("H200", "NVIDIA H200", 143_771, 139.81),
    _card("B200", "NVIDIA B200", 183_359, 178.35),
)
#: Those that are shown where nobody names one.
USUAL = tuple(card for card in CARDS if card.name in ("RTX 4090", "L40S", "H100", "H200"))


def card_named(text: str) -> CardType:
    """A card's name, or the size of a card such as 24GiB. Raises `SpecError`."""
    if re.match(r"\s*\d", text) and not _matches(text):
        try:
            size = parse_bytes(text)
        except ValueError as error:
            raise SpecError(f"--card {text}: {error}") from None
        assert size is not None  # only the word `device` stands for no size
        return CardType(name=text, kind="NVIDIA", total_bytes=size, reserve_bytes=_RESERVE_BYTES)
    found = _matches(text)
    if len(found) == 1:
        return found[0]
    names = ", ".join(card.name for card in found or CARDS)
    if found:
        raise SpecError(f"--card {text}: which of {names}?")
    nearest = difflib.get_close_matches(text.upper(), [card.name.upper() for card in CARDS], 1, 0.0)
    raise SpecError(f"--card {text}: the nearest is {nearest[0]!r} (of {names}, or a size such as 24GiB)")


def _matches(text: str) -> list[CardType]:
    wanted = _plain(text)
    exact = [card for card in CARDS if wanted in (_plain(card.name), _plain(card.kind))]
    return exact or [card for card in CARDS if len(wanted) > 1 and wanted in _plain(card.name)]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())
