"""How an attempt ended, and what follows from each end. Every list of outcomes in the project is a property here."""

from enum import StrEnum


class Outcome(StrEnum):
    OK = "ok"
    OOM_LOAD = "oom_load"
    OOM_PREFILL = "oom_prefill"
    OOM_DECODE = "oom_decode"
    OOM_HOST = "oom_host"
    CONTEXT_LIMIT = "context_limit"
    LENGTH_SHORT = "length_short"
    TIMEOUT = "timeout"
    HANG = "hang"
    CRASHED = "crashed"
    GPU_FAULT = "gpu_fault"
    LOAD_ERROR = "load_error"
    UNAVAILABLE = "unavailable"
    INFRA_ERROR = "infra_error"
    PRUNED = "pruned"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"

    @property
    def is_device_oom(self) -> bool:
        """The device's memory ran out: a result, not an error."""
        return self in (Outcome.OOM_LOAD, Outcome.OOM_PREFILL, Outcome.OOM_DECODE)

    @property
    def is_expected(self) -> bool:
        """A sweep looks for this end. Reports show the other ends first."""
        return self in (Outcome.OK, Outcome.PRUNED) or self.is_device_oom

    @property
    def is_final(self) -> bool:
        """One such attempt closes its cell. A cell whose attempts end otherwise is tried again, up to a limit."""
        return not (self.is_open or self.blames_machine or self is Outcome.CRASHED)

    @property
    def is_open(self) -> bool:
        """The attempt says nothing about its cell. The next run of the same command tries the cell again,
        however many such attempts there were.
        """
        return self in (Outcome.INFRA_ERROR, Outcome.CANCELLED, Outcome.UNAVAILABLE)

    @property
    def blames_machine(self) -> bool:
        """The machine may have failed, not the cell. The attempt counts against `max_attempts`."""
        return self in (Outcome.INFRA_ERROR, Outcome.HANG, Outcome.GPU_FAULT)

    @property
    def strikes_device(self) -> bool:
        """The device is suspect. A hang or a crash may be the cell's fault, so it is no strike."""
        return self in (Outcome.INFRA_ERROR, Outcome.GPU_FAULT)

    @property
    def is_unfinished(self) -> bool:
        """The cell has no outcome of its own making."""
        return self.is_open or self is Outcome.QUARANTINED
