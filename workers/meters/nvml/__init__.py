"""Reads one card through NVML, which needs no CUDA context and takes no device memory.

NVML numbers cards in PCI order and ignores CUDA_VISIBLE_DEVICES, so everything here goes by UUID.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pynvml

from workers.meters import MeterReading
from workers.meters.host_memory import host_memory

#: What NVML raises for a call that this driver or this card does not have.
_NOT_OFFERED = (
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_InvalidArgument,  # a structure of a version that the driver does not know
    pynvml.NVMLError_ArgumentVersionMismatch,
)


class NoDevice(Exception):
    """No card, or none of that name. One line: what was asked for, what is there."""


class MemorySource(StrEnum):
    """Where a device's memory is read."""

    NVML = "nvml"  # version 2 of the call: the driver's reserve stands apart
    NVML_V1 = "nvml_v1"  # older drivers: the reserve is counted as used
    HOST = "host"  # memory that CPU and GPU share, of which NVML says "not supported": the machine's


@dataclass(frozen=True, slots=True)
class CardMemory:
    """`reserve_bytes`: held by the driver and not part of `used_bytes`; 0 where the source does not tell it apart."""

    total_bytes: int
    reserve_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class CardProcess:
    """`pid` is the host's in most containers. `used_bytes` None: hidden."""

    pid: int
    used_bytes: int | None


def resolve(visible: str, uuids: Sequence[str]) -> str:
    """Return the full UUID of one entry of CUDA_VISIBLE_DEVICES. `uuids`: as `list_uuids` returns them.

    An entry is an index, a `GPU-` or `MIG-` UUID, or a prefix of one that fits one card only. A MIG UUID is
    not among the cards' own and is taken as it is. Raises `NoDevice`.
    """
    if visible.isdigit():
        if int(visible) >= len(uuids):
            raise NoDevice(f"CUDA_VISIBLE_DEVICES={visible}: there are {len(uuids)} cards")
        if not uuids[int(visible)]:
            raise NoDevice(
                f"CUDA_VISIBLE_DEVICES={visible}: the NVIDIA driver does not find that card any more"
            )
        return uuids[int(visible)]
    if visible.startswith("MIG-"):
        return visible
    fitting = [uuid for uuid in uuids if uuid.startswith(visible)]
    if visible and len(fitting) == 1:
        return fitting[0]
    raise NoDevice(f"CUDA_VISIBLE_DEVICES={visible}: fits {len(fitting)} of {', '.join(uuids) or 'no cards'}")


class Card:
    """One card or MIG slice. Implements `Meter`.

    `memory_source`: the best that the driver offers, found once.
    """

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self.kind: str = pynvml.nvmlDeviceGetName(self._handle)
            self.driver_version: str = pynvml.nvmlSystemGetDriverVersion()
        except pynvml.NVMLError as error:
            raise NoDevice(f"{uuid}: {error}") from None
        self._followed: int | None = None
        self.memory_source = self._best_source()

    @classmethod
    def visible(cls, environ: "os._Environ[str] | dict[str, str] | None" = None) -> "Card":
        """Return the first card of CUDA_VISIBLE_DEVICES, or of the machine when that is not set. Raises `NoDevice`."""
        wanted = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return cls(resolve(wanted.strip(), list_uuids()))

    def memory(self) -> CardMemory:
        """Return the card's memory. Raises `NoDevice` when the card no longer answers."""
        try:
            return self._read_memory(self.memory_source)
        except pynvml.NVMLError as error:
            raise NoDevice(f"{self.uuid} does not tell its memory: {error}") from None

    def _best_source(self) -> MemorySource:
        for source in (MemorySource.NVML, MemorySource.NVML_V1):
            try:
                self._read_memory(source)
            except _NOT_OFFERED:
                continue
            except pynvml.NVMLError as error:
                raise NoDevice(f"{self.uuid} does not tell its memory: {error}") from None
            return source
        return MemorySource.HOST

    def _read_memory(self, source: MemorySource) -> CardMemory:
        if source is MemorySource.HOST:
            memory = host_memory()
            return CardMemory(memory.total_bytes, 0, memory.used_bytes)
        if source is MemorySource.NVML_V1:
            info = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            return CardMemory(info.total, 0, info.used)
        info = pynvml.nvmlDeviceGetMemoryInfo(self._handle, version=pynvml.nvmlMemory_v2)
        return CardMemory(info.total, info.reserved, info.used)

    def processes(self) -> list[CardProcess] | None:
        """Return the compute processes on the card. None where the driver does not say."""
        try:
            found = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:
            return None
        return [CardProcess(process.pid, process.usedGpuMemory) for process in found]

    def follow(self, pid: int) -> None:
        """From now on read this process's part as well, where the driver shows it."""
        self._followed = pid

    def leave(self) -> None:
        self._followed = None

    def read(self) -> MeterReading:
        followed = self._followed
        used = None
        if followed is not None:
            used = next((p.used_bytes for p in self.processes() or () if p.pid == followed), None)
        try:
            return MeterReading(self.memory().used_bytes, used)
        except NoDevice:  # the sampler goes on: what the card does not say is unknown, and may come back
            return MeterReading(None, used)


def list_uuids() -> list[str]:
    """Return every card's UUID in PCI order, "" in the place of one that does not answer.

    Raises `NoDevice` where there is no driver.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDevice(f"no NVIDIA driver here: {error}") from None
    try:
        return [_uuid(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise NoDevice(f"the NVIDIA driver does not list its cards: {error}") from None


def _uuid(index: int) -> str:
    try:
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError:  # fallen off the bus: the others work
        return ""
