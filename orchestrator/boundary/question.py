"""What a boundary search asks: one model, mode, engine, budget and phase, with one number that grows.

The number is the question's *value*: new tokens (decode phases), prompt tokens (prefill phases) or sequences
(axis `batch_size`). `Question.probe` turns a value into a cell, `Question.match` turns that cell back.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from orchestrator.boundary.search import Probe
from orchestrator.plan import expand
from orchestrator.spec import SweepSpec
from workers.attempt import Attempt
from workers.attempt import Phase as RunPhase
from workers.cell import Cell
from workers.modes import GENERATE, MODES
from workers.outcome import Outcome

#: decode: longest generation from a short prompt. decode_after_prefill: the same from a long prompt (half of
#: the predicted decode boundary, see `start`). prefill, prefill_chunked: longest prompt, in one pass or in
#: chunks.
Phase = Literal["decode", "decode_after_prefill", "prefill", "prefill_chunked"]
Axis = Literal["length", "batch_size"]
#: How a probe gets to its last token: one by one, or all but the last `TAIL` of them as a chunked prompt; synthetic: as
#: prefill, the first probe of each value with noise for most of the prompt.
Reach = Literal["decode", "prefill", "synthetic"]

#: New tokens that a probe with another reach than `decode` still generates one by one, so that decode's own needs are
#: met.
TAIL = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`cell` carries everything that stays the same; its `length` is read on the axis `batch_size` only.

    `prefill_chunk`: tokens per pass, for the phase `prefill_chunked` and for the other reaches than `decode`.
    `bytes_per_token`: of the caches, where every layer keeps every token (set by `start.fit_to_device`): tells how
    far a chunked prompt came.
    """

    cell: Cell
    phase: Phase
    axis: Axis
    reach: Reach
    prefill_chunk: int
    resolution: int
    max_value: int
    confirm: int
    bytes_per_token: int | None = None

    @property
    def by_prompt(self) -> bool:
        """Whether probes read their last position as part of a prompt."""
        return self.reach != "decode"

    @property
    def scouts(self) -> bool:
        """Whether the first probe of each value is synthetic: it points at the bracket, and is no evidence for it."""
        return self.reach == "synthetic" and self.cell.engine == "graph"

    def probe(self, value: int, confirmation: int) -> Cell:
        cell = dataclasses.replace(self.cell, purpose="probe", repeat=confirmation)
        if self.axis == "batch_size":
            cell, tokens = dataclasses.replace(cell, batch_size=value), cell.length
        else:
            tokens = value
        if self.phase in ("prefill", "prefill_chunked"):
            chunk = self.prefill_chunk if self.phase == "prefill_chunked" else None
            return dataclasses.replace(cell, prompt_tokens=tokens, length=1, prefill_chunk=chunk)
        if self.by_prompt:
            length = min(tokens, TAIL)
            return dataclasses.replace(
                cell,
                prompt_tokens=cell.prompt_tokens + tokens - length,
                length=length,
                prefill_chunk=self.prefill_chunk,
                synthetic=self.scouts and confirmation == 0,
            )
        return dataclasses.replace(cell, length=tokens)

    def value(self, cell: Cell) -> int:
        """The value that `cell`, one of this question's probes, was made from."""
        if self.axis == "batch_size":
            return cell.batch_size
        if self.phase in ("prefill", "prefill_chunked"):
            return cell.prompt_tokens
        return cell.prompt_tokens + cell.length - self.cell.prompt_tokens

    def match(self, cell: Cell) -> Probe | None:
        """The probe that `cell` is, None when it is none of this question's."""
        if cell.purpose != "probe":
            return None
        probe = Probe(self.value(cell), cell.repeat)
        return probe if probe.value >= 1 and self.probe(probe.value, probe.confirmation) == cell else None

    def read(self, attempt: Attempt) -> "ProbeReading | None":
        """What an attempt at one of this question's probes says about memory; None when it says nothing."""
        if attempt.outcome is Outcome.OK:
            return ProbeReading(passed=True)
        if not attempt.outcome.is_device_oom:
            return None
        return self._account(attempt)

    def _account(self, attempt: Attempt) -> "ProbeReading":
        """What a failed run says of how far it came."""
        if attempt.outcome is Outcome.OOM_LOAD:
            # What is prepared after the load (captures, caches) may depend on the value; the weights do not.
            by_weights = attempt.phase in (RunPhase.SPAWN, RunPhase.LOAD)
            return ProbeReading(passed=False, passed_up_to=0 if by_weights else None)
        if self.axis == "batch_size":
            return ProbeReading(passed=False)
        cell = attempt.cell
        if attempt.outcome is Outcome.OOM_DECODE:
            if attempt.failure is None or attempt.failure.oom_token_index is None:
                return ProbeReading(passed=False)
            passed_up_to = self.value(dataclasses.replace(cell, length=attempt.failure.oom_token_index))
            return ProbeReading(passed=False, passed_up_to=passed_up_to)
        if cell.prefill_chunk is not None and cell.prompt_tokens > self.cell.prompt_tokens:
            return self._read_in_chunks(attempt, cell.prefill_chunk)
        # Of a fixed prompt no new token came; of a growing one read in one pass nobody counted.
        return ProbeReading(passed=False, passed_up_to=0 if self.phase.startswith("decode") else None)

    def _read_in_chunks(self, attempt: Attempt, chunk: int) -> "ProbeReading":
        """By the run's own count of what it had read: the next chunk is the one that failed. Where it had read all of the
        prompt but what the generation begins with, nothing is known of shorter ones.

        Where nobody counted (a process that was ended from outside), by the bytes in the cache: the chunk that failed is
        the one it had begun to grow by, or, where it holds whole chunks, perhaps the next.
        """
        read = attempt.failure.oom_prompt_tokens if attempt.failure is not None else None
        kv_bytes = attempt.measured.kv_cache_bytes
        if read is not None:
            if read >= attempt.cell.prompt_tokens - 1:
                return ProbeReading(passed=False)
            whole, failed = read, read + chunk + 1
        elif kv_bytes and self.bytes_per_token:
            tokens = kv_bytes // self.bytes_per_token
            whole, failed = (tokens - 1) // chunk * chunk, (tokens // chunk + 1) * chunk
        else:
            return ProbeReading(passed=False)
        if self.phase.startswith("prefill"):
            return ProbeReading(passed=False, passed_up_to=whole, fails_from=failed)
        before = self.cell.prompt_tokens
        return ProbeReading(
            passed=False,
            passed_up_to=max(whole - before, 0),
            fails_from=max(failed + attempt.cell.length - before, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReading:
    """As `Search.observe` takes it."""

    passed: bool
    passed_up_to: int | None = None
    fails_from: int | None = None


def questions(spec: SweepSpec) -> list[Question]:
    """Every question of a sweep file, empty without a `boundary:` section. One answer per device kind is due to each.

    Probes generate, whatever the sweep's workload; modes that can only score are left out, and speculation on
    the axis `batch_size`, where it has only 1. That axis has the resolution 1, and one question per length.
    """
    boundary = spec.boundary
    if boundary is None:
        return []
    by_batch = boundary.axis == "batch_size"
    found: dict[tuple[Cell, str], Question] = {}
    for phase in boundary.phases:
        prefilling = phase.startswith("prefill")
        for cell in expand(_asked(spec, by_batch=by_batch, prefilling=prefilling)):
            question = Question(
                cell=dataclasses.replace(cell, purpose="probe"),
                phase=phase,
                axis=boundary.axis,
                reach="decode" if prefilling else boundary.reach,
                prefill_chunk=boundary.prefill_chunk,
                resolution=1 if by_batch else boundary.resolution,
                max_value=boundary.max_length,
                confirm=boundary.confirm,
            )
            found.setdefault((question.cell, phase), question)
    return list(found.values())


def _asked(spec: SweepSpec, *, by_batch: bool, prefilling: bool) -> SweepSpec:
    """The sweep with one value on every axis that grows or that a search does not vary, so that every other axis of
    the sweep is one of its searches too.
    """
    modes = [
        name
        for name in spec.modes
        if GENERATE.name in MODES[name].workloads
        and not (by_batch and MODES[name].decoder.largest_batch is not None)
    ]
    return spec.model_copy(
        update={
            "workload": GENERATE.name,
            "modes": modes,
            "prompt_tokens": [0] if prefilling else spec.prompt_tokens,
            "batch_sizes": [1] if by_batch else spec.batch_sizes,
            "lengths": spec.lengths if by_batch else [1],
            "repetition_penalty": spec.repetition_penalty[:1],
            "repeats": 1,
        }
    )
