"""Supervises one child until it has ended: reads its events and its output, and ends it when it exceeds a limit."""

import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workers import error_kinds
from workers.attempt import Phase, Step
from workers.cell import Lease
from workers.host import processes
from workers.host.devices import Slot
from workers.host.events import (
    BadLine,
    Checkpoint,
    ContextReady,
    Entered,
    Finished,
    Limited,
    Opened,
    Produced,
    decode,
)
from workers.host.evidence import LastOutput, StackDump
from workers.host.forkserver import Ended, ForkServer, ForkServerError
from workers.host.peer_hosts import PeerHosts
from workers.meters.host_memory import host_memory, is_largest_cell
from workers.meters.process import unshared_resident_bytes
from workers.meters.sampler import GRAIN_BYTES, Sampler
from workers.meters.state_sampler import StateSampler
from workers.outcome import Outcome
from workers.progress import Progress
from workers.units import duration_text, size_text

_TICK_S = 0.1
_PROGRESS_S = 1.0
_READ_BYTES = 65536
_LAST_READS = 2**10  # what a dead child left in a pipe; not what a living one goes on writing
_MAX_LINE = 64 * 2**20
_EXIT_LIMIT_S = 15.0  # from the last event, or from SIGKILL, to the end of the process
_QUIET = (
    Phase.SPAWN,
    Phase.LOAD,
    Phase.PREPARE,
    Phase.PREFILL,
)  # no tokens to count: memory that moves is progress


@dataclass(frozen=True, slots=True)
class EndedByUs:
    """Why the host ended a child."""

    outcome: Outcome
    message: str
    stack_dump: str | None = None


@dataclass
class Observations:
    """Everything that the host observed of one child. Times are `time.monotonic()`."""

    started_s: float
    ended_s: float | None = None
    last_output: str = ""
    kernel_oom_kill: bool = False  # the kernel's OOM killer struck on this machine meanwhile
    phase: Phase = Phase.SPAWN
    produced: int = 0
    opened_s: float | None = None
    prefill_s: float | None = None
    limited: Limited | None = None
    context_bytes: int | None = None
    steps: list[Step] = field(default_factory=list)
    finished: Finished | None = None
    ended_by_us: EndedByUs | None = None
    ended: Ended | None = None
    server_died: str | None = None
    lingers: bool = False  # killed, and yet not gone


class Supervisor:
    """Supervises one child of `server`, from its start to its end. All times are `time.monotonic()`."""

    def __init__(
        self,
        lease: Lease,
        slot: Slot,
        sampler: Sampler,
        state: StateSampler,
        server: ForkServer,
        pid: int,
        started_s: float,
        host_memory_limit: float,
        report: Callable[[Progress], None],
        peers: PeerHosts,
    ) -> None:
        self._lease, self._slot, self._server = lease, slot, server
        self._sampler, self._state = sampler, state
        self._pid, self._started_s = pid, started_s
        self._host_memory_limit = host_memory_limit
        self._report = report
        self._peers = peers
        self._line = bytearray()
        self._moved_s = started_s
        self._last_used: int | None = None
        self._last_report = (started_s, 0)
        self._next_look_s = started_s
        self._must_end_by: float | None = None
        self.seen = Observations(started_s)
        self._output = LastOutput()

    def until_ended(self, events_fd: int, output_fd: int, dump: StackDump) -> Observations:
        """Block until the child has ended, and return what was observed. The caller keeps both descriptors, which must
        be non-blocking."""
        with selectors.DefaultSelector() as selector:
            selector.register(events_fd, selectors.EVENT_READ, self._take_events)
            selector.register(output_fd, selectors.EVENT_READ, self._take_output)
            selector.register(self._server.control, selectors.EVENT_READ, None)
            while self.seen.ended is None and self.seen.server_died is None and not self.seen.lingers:
                for key, _ in selector.select(_TICK_S):
                    if key.data is None:
                        self._read_end()
                    elif not self._read(key.fd, key.data):
                        selector.unregister(key.fd)
                if (now := time.monotonic()) >= self._next_look_s:
                    self._next_look_s = now + _TICK_S
                    self._end_if_over_a_limit(now, dump)
        for fd, take in ((events_fd, self._take_events), (output_fd, self._take_output)):
            for _ in range(_LAST_READS):
                if not self._read(fd, take):
                    break
        self.seen.ended_s = time.monotonic()
        self.seen.last_output = self._output.text()
        return self.seen

    # -- what the child says ----------------------------------------------------------------------------------

    def _read(self, fd: int, take: Callable[[bytes], None]) -> bool:
        """Returns whether there was something to read."""
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        take(chunk)
        return bool(chunk)

    def _take_events(self, chunk: bytes) -> None:
        self._line += chunk
        *lines, rest = self._line.split(b"\n")
        self._line = rest if len(rest) < _MAX_LINE else bytearray()
        for line in lines:
            self._take(bytes(line))

    def _take_output(self, chunk: bytes) -> None:
        self._output.add(chunk)

    def _take(self, line: bytes) -> None:
        try:
            event = decode(line)
        except BadLine:
            return
        seen, now = self.seen, time.monotonic()
        self._moved_s = now
        match event:
            case Entered(phase, at_s):
                seen.phase = phase
                self._state.mark(phase)
                if phase is Phase.PREFILL:
                    seen.prefill_s = at_s
            case Opened(at_s):
                seen.opened_s = at_s
            case Produced(tokens):
                seen.produced = tokens
            case Checkpoint(step):
                seen.steps.append(step)
                seen.produced = step.token_index + 1
            case Limited():
                seen.limited = event
            case ContextReady(context_bytes):
                seen.context_bytes = context_bytes
            case Finished():
                seen.finished = event
                self._must_end_by = now + _EXIT_LIMIT_S

    def _read_end(self) -> None:
        try:
            self.seen.ended = self._server.ended()
        except ForkServerError as error:
            processes.kill_group(self._pid)
            self.seen.server_died = str(error)

    # -- its limits -------------------------------------------------------------------------------------------

    def _end_if_over_a_limit(self, now: float, dump: StackDump) -> None:
        if self._must_end_by is not None:
            if now > self._must_end_by:
                processes.kill_group(self._pid)
                self.seen.lingers = self.seen.ended_by_us is not None
                self._must_end_by = now + _EXIT_LIMIT_S
                self.seen.ended_by_us = self.seen.ended_by_us or EndedByUs(Outcome.HANG, "did not exit")
            return
        used = self._used_bytes()
        self._notice_movement(now, used)
        self._peers.tell_moved(self._moved_s)
        if now - self._last_report[0] >= _PROGRESS_S:
            self._report_progress(now, used)
        cause = (
            self._over_budget(used)
            or self._over_host_memory()
            or self._too_late(now, dump)
            or self._stalled(now, dump)
            or self._left_by_a_peer(dump)
        )
        if cause is not None:
            self.seen.ended_by_us = cause
            processes.kill_group(self._pid)
            self._must_end_by = now + _EXIT_LIMIT_S

    def _used_bytes(self) -> int | None:
        device_bytes = self._sampler.latest().device_bytes
        if device_bytes is None or self.seen.limited is None:
            return None
        return self._slot.used_bytes(device_bytes, self.seen.limited.data_bytes)

    def _notice_movement(self, now: float, used: int | None) -> None:
        if self.seen.phase in _QUIET and used is not None:
            if self._last_used is None or abs(used - self._last_used) >= GRAIN_BYTES:
                self._moved_s = now
            self._last_used = used

    def _report_progress(self, now: float, used: int | None) -> None:
        before_s, before = self._last_report
        produced = self.seen.produced
        self._last_report = (now, produced)
        recent = (produced - before) / (now - before_s) if produced > before else None
        state = self._state.latest()
        self._report(
            Progress(
                lease_id=self._lease.lease_id,
                phase=self.seen.phase,
                new_tokens=produced,
                elapsed_s=now - self._started_s,
                tokens_per_s=recent,
                device_used_bytes=used,
                power_w=state.power_w,
                sm_clock_mhz=state.sm_clock_mhz,
                temperature_c=state.temperature_c,
                throttled=None if state.throttle is None else bool(state.throttle),
            )
        )

    def _over_budget(self, used: int | None) -> EndedByUs | None:
        budget = self._lease.cell.budget
        if budget is None or used is None:
            return None
        over = self._slot.over_budget(used, budget)
        return EndedByUs(error_kinds.oom_of(self.seen.phase), over) if over is not None else None

    def _over_host_memory(self) -> EndedByUs | None:
        memory = host_memory()
        if memory.fraction <= self._host_memory_limit:
            return None
        resident = unshared_resident_bytes(self._pid)
        if not is_largest_cell(self._pid, resident):
            return None
        return EndedByUs(
            Outcome.OOM_HOST,
            f"{memory.fraction:.1%} of {size_text(memory.total_bytes)} host memory in use, "
            f"{size_text(resident)} of it by this cell, the largest here",
        )

    def _too_late(self, now: float, dump: StackDump) -> EndedByUs | None:
        limit = self._lease.time_limit_s
        if now - self._started_s <= limit:
            return None
        return EndedByUs(
            Outcome.TIMEOUT, f"no end within {duration_text(limit)} ({self._where()})", dump.take(self._pid)
        )

    def _stalled(self, now: float, dump: StackDump) -> EndedByUs | None:
        limit = self._lease.stall_timeout_s
        if now - self._moved_s <= limit or now - self._peers.moved_s() <= limit:
            return None
        return EndedByUs(
            Outcome.HANG, f"no progress for {duration_text(limit)} ({self._where()})", dump.take(self._pid)
        )

    def _left_by_a_peer(self, dump: StackDump) -> EndedByUs | None:
        """Without one of its processes a cell comes to no end. Where that one hung or took too long and this one does not
        wait for it, that one waited for this one."""
        peer = self._peers.first_bad_end()
        if peer is None:
            return None
        if peer.outcome not in (Outcome.HANG, Outcome.TIMEOUT):
            return EndedByUs(Outcome.CANCELLED, f"rank {peer.rank} ended: {peer.outcome}")
        stacks = dump.take(self._pid)
        if error_kinds.waits_for_a_peer(stacks):
            return EndedByUs(Outcome.CANCELLED, f"rank {peer.rank} ended: {peer.outcome}", stacks)
        return EndedByUs(peer.outcome, f"rank {peer.rank} waited for it in vain ({self._where()})", stacks)

    def _where(self) -> str:
        return f"{self.seen.phase}, {self.seen.produced} tokens"
