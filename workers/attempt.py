"""What came of a cell on a device: outcome, measurements, evidence. Comes up through the rooms as one plain value.

Units are in the names; None means not available, never 0.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from workers.cell import Cell
from workers.machine_state import MachineState
from workers.outcome import Outcome


class Phase(StrEnum):
    """How far a child had come. SPAWN: process started, nothing loaded."""

    SPAWN = "spawn"
    LOAD = "load"
    PREPARE = "prepare"  # tokenising, capture, compile, warm-up
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One card, MIG slice or CPU slot. `kind`: NVML's name, or "cpu". `total_bytes`: the card's memory (a CPU slot's share)."""

    kind: str
    uuid: str
    node: str
    total_bytes: int
    reserve_bytes: int = 0  # held by the driver before any process comes (NVML v2 `reserved`)
    driver_version: str | None = None
    per_process_memory_visible: bool = False
    memory_source: str | None = (
        None  # where device bytes are read: nvml | nvml_v1 | host | process (a CPU slot)
    )
    idle_power_w: float | None = None  # before any cell, without a context
    allocators_left_out: str | None = None  # those that LD_PRELOAD names there: cells run without them
    libraries: str | None = None  # torch and transformers there, with their versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The state after token `token_index` (0-based among the new tokens) was known; `t_s` since the child's start."""

    token_index: int
    t_s: float
    allocated_bytes: int | None
    reserved_bytes: int | None
    kv_cache_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One change of a meter's value; `t_s` since the child's start."""

    t_s: float
    device_used_bytes: int | None
    process_used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InEffect:
    """Read back from the live objects after set-up, never from what was asked."""

    cache_class: str
    attn_implementation: str
    dtype: str
    sinks: int | None = None
    window: int | None = None
    gamma: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the child measured. Speeds exclude load, capture, compile and warm-up."""

    new_tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None  # decode throughput, per sequence x batch
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    tpot_p99_s: float | None = None
    tokens_per_step: float | None = None
    acceptance_rate: float | None = None
    draft_step_s: float | None = None  # median time of one draft forward
    verify_step_s: float | None = None  # median time of one target forward over gamma + 1 tokens
    load_s: float | None = None
    load_was_warm: bool | None = None  # weights were in the page cache
    prepare_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    weights_bytes: int | None = None
    step_weights_bytes: int | None = None  # read by one step of decoding, or by one round of speculation
    copy_bandwidth_bytes_per_s: float | None = None  # of the device, read plus written, at the child's start
    copy_bandwidth_after_bytes_per_s: float | None = None  # the same at the end, after the run
    matmul_flops_per_s: float | None = None  # of a fixed product on a CPU slot, at the child's start
    matmul_after_flops_per_s: float | None = None  # the same at the end
    roofline_fraction: float | None = None  # see workers.meters.roofline
    kv_cache_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    num_alloc_retries: int | None = None
    kl_tokens: int | None = None  # compared with a full cache in the model's dtype, where a text was scored
    kl_mean: float | None = None  # nats
    kl_p99: float | None = None
    same_choice: float | None = None  # share of those tokens after which both would choose the same one
    eos_at: int | None = None
    prompt_sha256: str | None = None
    output_sha256: str | None = None
    ids_mapped: int | None = None  # of the text, into a vocabulary smaller than its stand-in tokenizer's
    max_positions: int | None = None  # the model's trained context
    text_head: str | None = None
    text_tail: str | None = None
    in_effect: InEffect | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Evidence of an attempt that did not end ok."""

    error_type: str
    error_message: str
    oom_token_index: int | None = None
    oom_prompt_tokens: int | None = None  # of the prompt, read in passes that fitted
    oom_requested_bytes: int | None = None
    oom_free_bytes: int | None = None
    oom_allocated_bytes: int | None = None
    oom_reserved_bytes: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    last_output: str = ""
    stack_dump: str | None = None
    memory_snapshot: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What one of a cell's devices came to. The first item of `Attempt.devices` is that of rank 0, and so on.

    `outcome`, `error_message`: of the process on this device; `cancelled`: ended because another one ended badly.
    `ended_cell`: the cell's outcome is that of this device.
    """

    device_uuid: str
    outcome: Outcome
    phase: Phase
    ended_cell: bool = False
    error_message: str | None = None
    new_tokens: int = 0
    tokens_per_s: float | None = None
    context_bytes: int | None = None
    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One cell once, whatever came of it. On several devices (`devices`) everything is that of one of them: of the one
    that ended the cell, else of rank 0; the peaks are those of the fullest."""

    lease_id: str
    cell: Cell
    attempt: int
    outcome: Outcome
    phase: Phase
    device: Device | None
    started_at: float  # seconds since the epoch, the device host's clock
    duration_s: float
    measured: Measured = field(default_factory=Measured)
    machine: MachineState | None = None  # None: it did not come to its prefill
    failure: Failure | None = None
    # Of the run, from prefill on. Above the idle device; a CPU slot: growth of the data segment.
    peak_device_bytes: int | None = None
    peak_process_bytes: int | None = None
    context_bytes: int | None = None  # device use of an idle context, before any weight
    sample_interval_p50_s: float | None = None
    sample_interval_p99_s: float | None = None
    first_model_call_s: float | None = (
        None  # lease received -> first call of the model (of its warm-up), load included
    )
    samples: tuple[Sample, ...] = ()
    steps: tuple[Step, ...] = ()
    devices: tuple[DeviceShare, ...] = ()  # of a cell on several
    results: tuple[Any, ...] = ()  # what the cell's workload found: items of its `result`
    output_ids: tuple[int, ...] = ()
    device_dirty: str | None = None  # why the device was not clean after this attempt; None = proven clean
