"""The sweep file: what a person asks for. Unknown keys are refused; every default is visible here.

Reading goes text -> YAML -> `SweepSpec`; `SpecError` names place, key, value and remedy of all that is wrong.
A single value stands for a list of one, and a name for a model that has nothing but a target.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from orchestrator import strict_yaml
from orchestrator.predict.allocator.settings import AllocatorSettings, AllocatorSettingsError
from orchestrator.spec_error import SpecError
from orchestrator.spec_faults import Place, explain, nearest, placed
from orchestrator.spec_overrides import apply_overrides
from orchestrator.strict_yaml import Surprise
from workers.allocator import DEFAULT, settings_text
from workers.modes import GENERATE, MODES, WORKLOADS
from workers.retrieval.tasks import TASKS
from workers.units import GiB

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": GiB, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(value: object) -> int | None:
    """`8GiB` -> bytes; `device` -> None (all of the card). Integers are bytes."""
    if value is None or value == "device":
        return None
    if isinstance(value, bool):
        raise ValueError("a size such as 8GiB, or device")
    if isinstance(value, int):
        size: float = value
    elif isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)):
        number, unit = match.groups()
        if unit.lower() not in _UNITS:
            raise ValueError(f"unknown unit {unit!r}: one of B, KiB, MiB, GiB, TiB, KB, MB, GB")
        size = float(number) * _UNITS[unit.lower()]
    else:
        raise ValueError("a size such as 8GiB or 512MiB, or device")
    if not 1 <= size < 2**60:
        raise ValueError("a size above 0 and below 1 EiB")
    return int(size)


def parse_lengths(value: object) -> list[int]:
    """A number, a list, or `500-8000*2` (500, 1000, 2000, ... up to and including 8000) or `0-100+25`."""
    items = value if isinstance(value, list) else [value]
    numbers: list[int] = []
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            numbers.append(item)
            continue
        match = (
            re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*([*+])\s*(\d{1,9})\s*", item)
            if isinstance(item, str)
            else None
        )
        if match is None:
            raise ValueError("a whole number, a list of them, or a range such as 500-8000*2 or 1000-4000+500")
        low, high, step = int(match[1]), int(match[2]), int(match[4])
        if (match[3] == "*" and (step < 2 or low < 1)) or step < 1:
            raise ValueError("a range that grows: factor 2 or more, or step 1 or more")
        if match[3] == "+" and (high - low) // step > 10_000:
            raise ValueError("a range of at most 10,000 lengths")
        while low <= high:
            numbers.append(low)
            low = low * step if match[3] == "*" else low + step
    if not numbers or any(not 1 <= n <= 2**40 for n in numbers):
        raise ValueError("at least one whole number, each 1 or more")
    return sorted(set(numbers))


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _as_models(value: object) -> list[object]:
    return [{"target": model} if isinstance(model, str) else model for model in _as_list(value)]


def _as_dtype(value: object) -> object:
    """`torch.bfloat16` and the short names of the field."""
    name = str(value).lower().removeprefix("torch.")
    return _DTYPES.get(name, name) if isinstance(value, str) else value


_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
}
#: As a sweep file may write them.
DTYPE_NAMES = frozenset(_DTYPES) | frozenset(_DTYPES.values())
_TEXT_OR_NUMBER = {"type": ["integer", "string", "null"]}
OneOrMore = BeforeValidator(_as_list)
Lengths = Annotated[
    list[int],
    BeforeValidator(parse_lengths),
    WithJsonSchema({"anyOf": [_TEXT_OR_NUMBER, {"type": "array", "items": _TEXT_OR_NUMBER}]}),
]
Size = Annotated[int | None, BeforeValidator(parse_bytes), WithJsonSchema(_TEXT_OR_NUMBER)]
PositiveInt = Annotated[int, Field(ge=1, le=2**40, strict=True)]
KvDtype = Literal["auto", "fp8", "int8", "int4"]
KvPlacement = Literal["device", "host"]
DevicesPerCell = Annotated[int, Field(ge=1, le=64, strict=True)]
Penalty = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


def _known_workload(name: str) -> str:
    if name not in WORKLOADS:
        raise ValueError(nearest(name, WORKLOADS))
    return name


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(nearest(name, TASKS))
    return name


def _known_allocator(text: str) -> str:
    try:
        AllocatorSettings.parse(settings_text(text))
    except AllocatorSettingsError as error:
        raise ValueError(f"default, expandable, or what PYTORCH_ALLOC_CONF may say: {error}") from None
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """`target`: hub id | local folder | file.gguf | pocket | random:NAME or random:FOLDER."""

    target: Annotated[str, Field(min_length=1, max_length=4096)]
    draft: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], BeforeValidator(_as_dtype)] = "bfloat16"
    attn_implementation: Literal[
        "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False


class StreamingSpec(_Strict):
    sinks: Annotated[int, Field(ge=0, le=4096, strict=True)] = 4
    window: PositiveInt = 512

    @model_validator(mode="after")
    def _window_holds_sinks(self) -> "StreamingSpec":
        if self.window < self.sinks:
            raise ValueError(
                f"window {self.window} is smaller than sinks {self.sinks}: make window at least {self.sinks}"
            )
        return self


class SpeculationSpec(_Strict):
    """`acceptance`: oracle draft, a per-token rate or `gamma` rates; or `mean_length`: tokens per round, 1..gamma+1."""

    gamma: Annotated[int, Field(ge=1, le=32, strict=True)] = 4
    acceptance: Annotated[float, Field(ge=0, le=1)] | list[Annotated[float, Field(ge=0, le=1)]] | None = None
    mean_length: Annotated[float, Field(ge=1, le=33)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "SpeculationSpec":
        if self.acceptance is not None and self.mean_length is not None:
            raise ValueError("acceptance and mean_length exclude each other: give one")
        if isinstance(self.acceptance, list) and len(self.acceptance) != self.gamma:
            raise ValueError(
                f"acceptance has {len(self.acceptance)} rates, gamma is {self.gamma}: give {self.gamma}"
            )
        if self.mean_length is not None and self.mean_length > self.gamma + 1:
            raise ValueError(f"mean_length {self.mean_length} is above gamma + 1 = {self.gamma + 1}")
        return self

    def rates(self) -> float | tuple[float, ...] | None:
        """The acceptance a cell carries; a mean length is solved for its per-token rate."""
        if self.mean_length is not None:
            return rate_for_mean_length(self.mean_length, self.gamma)
        return tuple(self.acceptance) if isinstance(self.acceptance, list) else self.acceptance


@functools.cache  # asked for once per cell
def rate_for_mean_length(mean_length: float, gamma: int) -> float:
    """The rate alpha with sum(alpha^k, k = 0..gamma) = mean_length, by bisection to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if math.fsum(middle**k for k in range(gamma + 1)) < mean_length else (low, middle)
        )
    return high


class BoundarySpec(_Strict):
    """Search for the bracket (last_ok, first_oom]. `axis`: what grows. `phases`: which boundaries."""

    resolution: PositiveInt = 64
    max_length: PositiveInt = 131072
    confirm: Annotated[int, Field(ge=1, le=20, strict=True)] = 2
    phases: Annotated[
        list[Literal["decode", "decode_after_prefill", "prefill", "prefill_chunked"]],
        Field(min_length=1),
        OneOrMore,
    ] = ["decode"]
    axis: Literal["length", "batch_size"] = "length"
    prefill_chunk: PositiveInt = 512
    reach: Literal["decode", "prefill", "synthetic"] = "decode"


class FloorsSpec(_Strict):
    """What a mode must reach to be recommended, at its longest measured length; None: any. `energy_per_token_j`: at most."""

    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    energy_per_token_j: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class RetrieveSpec(_Strict):
    """`tasks`: of `workers.retrieval.tasks`. `depths`: places of the needle. `samples`: questions at each place."""

    tasks: Annotated[list[Annotated[str, AfterValidator(_known_task)]], Field(min_length=1), OneOrMore] = [
        "single"
    ]
    depths: Annotated[int, Field(ge=1, le=100, strict=True)] = 5
    samples: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 20


_FIRST_OF_AUTO = 3  # repeats: from so many on an interval is worth the name


class SweepSpec(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    models: Annotated[list[ModelSpec], Field(min_length=1), BeforeValidator(_as_models)]
    modes: Annotated[list[str], Field(min_length=1), OneOrMore] = ["baseline", "streaming"]
    engines: Annotated[list[Literal["eager", "graph"]], Field(min_length=1), OneOrMore] = ["eager"]
    lengths: Lengths = [500, 1000, 2000, 4000, 8000]
    prompt_tokens: Lengths = [64]
    batch_sizes: Lengths = [1]
    prefill_chunk: PositiveInt | None = None
    streaming: StreamingSpec = StreamingSpec()
    speculation: SpeculationSpec = SpeculationSpec()
    workload: Annotated[str, AfterValidator(_known_workload)] = GENERATE.name
    retrieve: RetrieveSpec = RetrieveSpec()
    floors: FloorsSpec = FloorsSpec()
    repetition_penalty: Annotated[list[Penalty], Field(min_length=1), OneOrMore] = [1.0]
    corpus: Annotated[str, Field(min_length=1, max_length=4096)] = "builtin"
    budgets: Annotated[list[Size], Field(min_length=1), OneOrMore] = [None]
    allocator: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_known_allocator)]],
        Field(min_length=1),
        OneOrMore,
    ] = [DEFAULT]
    kv_dtype: Annotated[list[KvDtype], Field(min_length=1), OneOrMore] = ["auto"]
    kv_placement: Annotated[list[KvPlacement], Field(min_length=1), OneOrMore] = ["device"]
    devices_per_cell: Annotated[list[DevicesPerCell], Field(min_length=1), OneOrMore] = [1]
    boundary: BoundarySpec | None = None
    repeats: Annotated[int, Field(ge=1, le=1000, strict=True)] | Literal["auto"] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    devices: Annotated[list[str], OneOrMore] | None = None
    max_devices: Annotated[int, Field(ge=1, le=100_000, strict=True)] | None = None
    device_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    time_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    stall_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=20, strict=True)] = 3
    max_crashes: Annotated[int, Field(ge=1, le=20, strict=True)] = 2
    memory_snapshot: bool = False

    @property
    def first_repeats(self) -> int:
        """Of each measured cell, before anything is known of its speed."""
        return _FIRST_OF_AUTO if self.repeats == "auto" else self.repeats

    @model_validator(mode="after")
    def _devices_suffice(self) -> "SweepSpec":
        most = max(self.devices_per_cell)
        if self.max_devices is not None and most > self.max_devices:
            raise ValueError(
                f"devices_per_cell: {most} with max_devices: {self.max_devices}: make it at least {most}"
            )
        return self

    @model_validator(mode="after")
    def _modes_fit(self) -> "SweepSpec":
        if wrong := list(dict.fromkeys(fault for mode in self.modes for fault in self._misfits(mode))):
            raise ValueError("\n".join(wrong))
        return self

    def _misfits(self, name: str) -> Iterator[str]:
        """What a mode cannot do of all that is asked for. Each line begins with a key."""
        if name not in MODES:
            yield f"modes: unknown mode {name!r}; {nearest(name, MODES)}"
            return
        mode = MODES[name]
        if self.workload not in mode.workloads:
            yield f"modes: {name!r} has no workload {self.workload!r}; it has {', '.join(sorted(mode.workloads))}"
        for engine in self.engines:
            if engine not in mode.engines:
                yield f"engines: {engine!r} has no mode {name!r}; it runs on {', '.join(sorted(mode.engines))}"
        largest = mode.decoder.largest_batch
        if largest is not None and max(self.batch_sizes) > largest:
            yield (
                f"batch_sizes: {self.batch_sizes} with {name!r}: it runs at batch size {largest} at most; split the sweep"
            )
        if mode.decoder.needs_draft and all(model.draft is None for model in self.models):
            yield f"modes: {name!r} needs a draft: give `draft:` to a model"


def load_spec(text: str, overrides: Sequence[str] = (), name: str = "") -> SweepSpec:
    """Parse a sweep file. `overrides`: `key.path=yaml` from `--set`. `name`: of the file, for what is wrong in it.

    Raises `SpecError`, nothing else.
    """
    try:
        raw = strict_yaml.load(text)
        lines = strict_yaml.lines(text)
    except Surprise as surprise:
        raise SpecError(f"{name}, {surprise}" if name else str(surprise)) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        where = f"{name}: " if name else ""
        raise SpecError(f"{where}not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        where = f"{name}: " if name else ""
        raise SpecError(
            f"{where}a sweep file has keys with values, such as `name: my-sweep`; this one is {kind}"
        )
    if "models" in raw:
        raw["models"] = _as_models(raw["models"])
    return parse_spec(raw, placed(lines, apply_overrides(raw, overrides), name))


def parse_spec(raw: dict[Any, Any], place: Place = lambda path: "") -> SweepSpec:
    """`place`: where a key was written, to be put before what is wrong with it. Raises `SpecError`."""
    try:
        return SweepSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(explain(error, _GROUPS, place)) from None
    except RecursionError:
        raise SpecError("the sweep file nests too deeply") from None


def read_spec(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read sweep file {path}: {error}") from None
    return load_spec(text, overrides, str(path))


def dump_spec(spec: SweepSpec) -> str:
    """The resolved sweep file: every key with its value; `load_spec(dump_spec(s)) == s`."""
    raw = spec.model_dump(mode="json")
    raw["budgets"] = ["device" if size is None else size for size in spec.budgets]
    return yaml.safe_dump(raw, sort_keys=False)


#: The keys below each key that has some; "": those at the top.
_GROUPS = {
    "": tuple(SweepSpec.model_fields),
    "models": tuple(ModelSpec.model_fields),
    "streaming": tuple(StreamingSpec.model_fields),
    "speculation": tuple(SpeculationSpec.model_fields),
    "retrieve": tuple(RetrieveSpec.model_fields),
    "floors": tuple(FloorsSpec.model_fields),
    "boundary": tuple(BoundarySpec.model_fields),
}
