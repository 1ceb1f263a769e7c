"""Describes and meters what a host owns, a CPU slot or a card, and proves that it is clean.

`workers.host.child.device` is the same device inside a cell's process.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from workers.attempt import Device
from workers.host.preloaded import preloaded_allocators
from workers.libraries import library_versions
from workers.meters import Meter
from workers.meters.cpu_state import CpuState
from workers.meters.nvml import Card, MemorySource, NoDevice
from workers.meters.nvml.state import CardState
from workers.meters.process import ProcessMeter
from workers.meters.state import StateMeter
from workers.units import size_text

#: Device memory that may stay behind without a process: the driver's own, coming and going.
_SLACK_BYTES = 64 * 2**20
_CLEAN_LIMIT_S = 15.0
_CLEAN_TICK_S = 0.02
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in the kernel's proc_ns.h


class DeviceDirty(Exception):
    """The device still holds memory or processes that are not ours. One line: how much, whose."""


class Slot(Protocol):
    """The device of one host. `is_cpu`: for the fork server, which prepares its processes for one kind of device."""

    @property
    def is_cpu(self) -> bool: ...

    @property
    def device(self) -> Device: ...

    @property
    def meter(self) -> Meter: ...

    @property
    def state_meter(self) -> StateMeter: ...

    @property
    def environ(self) -> Mapping[str, str]:
        """Variables for the processes that use the device."""

    @property
    def idle_bytes(self) -> int:
        """What the device holds when it is clean."""

    def follow(self, pid: int) -> None:
        """Meter this process from now on."""

    def leave(self) -> None: ...

    def used_bytes(self, device_bytes: int, at_start: int) -> int:
        """Return what counts against a budget, from a meter's reading. `at_start`: the child's own first figure."""

    def over_budget(self, used_bytes: int, budget: int) -> str | None:
        """Return why the child is to be ended for its memory, None while it is not."""

    def what_is_left(self) -> str | None:
        """Return why the device is not clean, after waiting for it to become so. None when it is."""


class CpuSlot:
    """A share of this machine's memory. Clean once its process is gone, which the fork server sees to."""

    is_cpu = True
    idle_bytes = 0

    def __init__(self, slot: str, total_bytes: int) -> None:
        node = socket.gethostname()
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", slot.removeprefix(f"{node}/"))
        self.device = Device(
            kind="cpu",
            uuid=f"cpu-{node}-{name}",
            node=node,
            total_bytes=total_bytes,
            per_process_memory_visible=True,
            memory_source="process",
            allocators_left_out=_allocators_left_out(),
            libraries=library_versions(),
        )
        self.meter = ProcessMeter()
        self.state_meter = CpuState()
        self.environ: Mapping[str, str] = {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_DEACTIVATE_ASYNC_LOAD": "1",  # mapped files need no threads, and their stacks would be kept
        }

    def follow(self, pid: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # it may have died already
            self.meter.follow(pid)

    def leave(self) -> None:
        self.meter.leave()

    def used_bytes(self, device_bytes: int, at_start: int) -> int:
        return max(0, device_bytes - at_start)

    def over_budget(self, used_bytes: int, budget: int) -> None:
        """The kernel holds the child to its data limit."""

    def what_is_left(self) -> str | None:
        return None


class CardSlot:
    """The first card of CUDA_VISIBLE_DEVICES, by UUID. Raises `NoDevice`, `DeviceDirty`."""

    is_cpu = False

    def __init__(self) -> None:
        card = Card.visible()
        self.meter = card
        self.environ: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": card.uuid}
        # The last owner's memory comes back later than the news of its end.
        if left := _wait_clean(self._foreign_processes):
            raise DeviceDirty(left)
        memory = card.memory()
        self.state_meter = CardState(card.uuid)
        self.idle_bytes = memory.used_bytes
        self.device = Device(
            kind=card.kind,
            uuid=card.uuid,
            node=socket.gethostname(),
            total_bytes=memory.total_bytes,
            reserve_bytes=memory.reserve_bytes,
            driver_version=card.driver_version,
            per_process_memory_visible=_sees_pids(),
            memory_source=card.memory_source,
            idle_power_w=self.state_meter.read().power_w,
            allocators_left_out=_allocators_left_out(),
            libraries=library_versions(),
        )

    def follow(self, pid: int) -> None:
        if self.device.per_process_memory_visible:
            self.meter.follow(pid)

    def leave(self) -> None:
        self.meter.leave()

    def used_bytes(self, device_bytes: int, at_start: int) -> int:
        return max(0, device_bytes - self.idle_bytes)

    def over_budget(self, used_bytes: int, budget: int) -> str | None:
        """Memory beside torch's allocator may exceed the emulated card. The child cannot see that."""
        used_bytes += self.device.reserve_bytes
        if used_bytes <= budget:
            return None
        return (
            f"{size_text(used_bytes)} of the card in use, the driver's reserve included; "
            f"the budget is {size_text(budget)}"
        )

    def what_is_left(self) -> str | None:
        return _wait_clean(lambda: self._foreign_processes() or self._foreign_memory())

    def _foreign_processes(self) -> str | None:
        found = self.meter.processes() or []
        return f"processes on {self.meter.uuid}: {', '.join(str(p.pid) for p in found)}" if found else None

    def _foreign_memory(self) -> str | None:
        if self.meter.memory_source is MemorySource.HOST:
            return None  # the whole machine's: what others take says nothing of the device
        try:
            above = self.meter.memory().used_bytes - self.idle_bytes
        except NoDevice as error:
            return str(error)
        if above <= _SLACK_BYTES:
            return None
        return f"{size_text(above)} still in use on {self.meter.uuid}, of no process that shows"


def open_slot(slot: str, cpu_total_bytes: int | None) -> Slot:
    """Return a CPU slot where its share of memory is given, else a card."""
    return CardSlot() if cpu_total_bytes is None else CpuSlot(slot, cpu_total_bytes)


def _wait_clean(look: Callable[[], str | None]) -> str | None:
    deadline = time.monotonic() + _CLEAN_LIMIT_S
    while (left := look()) is not None and time.monotonic() < deadline:
        time.sleep(_CLEAN_TICK_S)
    return left


def _allocators_left_out() -> str | None:
    return ", ".join(preloaded_allocators(os.environ)) or None


def _sees_pids() -> bool:
    """NVML names processes by the pids of the initial namespace. In another, ours are not among them."""
    return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE
