"""The sweep file: what a person asks for. Unknown keys are refused; every default is visible here.

Reading goes text -> YAML -> `SweepSpec`; `SpecError` carries one message that names key, value and remedy.
"""

import difflib
import functools
import math
import re
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
    model_validator,
)

from orchestrator import strict_yaml
from orchestrator.predict.allocator.settings import AllocatorSettings, AllocatorSettingsError
from orchestrator.spec_error import SpecError
from orchestrator.strict_yaml import Surprise
from workers.allocator import DEFAULT, settings_text
from workers.modes import GENERATE, MODES, WORKLOADS
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


Lengths = Annotated[list[int], BeforeValidator(parse_lengths)]
Size = Annotated[int | None, BeforeValidator(parse_bytes)]
PositiveInt = Annotated[int, Field(ge=1, le=2**40, strict=True)]
Penalty = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


def _known_workload(name: str) -> str:
    if name not in WORKLOADS:
        nearest = difflib.get_close_matches(name, WORKLOADS, 1, 0.0)
        raise ValueError(f"the nearest is {nearest[0]!r} (of {', '.join(WORKLOADS)})")
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
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
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
        list[Literal["decode", "decode_after_prefill", "prefill", "prefill_chunked"]], Field(min_length=1)
    ] = ["decode"]
    axis: Literal["length", "batch_size"] = "length"
    prefill_chunk: PositiveInt = 512
    reach: Literal["decode", "prefill"] = "decode"


class SweepSpec(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    models: Annotated[list[ModelSpec], Field(min_length=1)]
    modes: Annotated[list[str], Field(min_length=1)] = ["baseline", "streaming"]
    engines: Annotated[list[Literal["eager", "graph"]], Field(min_length=1)] = ["eager"]
    lengths: Lengths = [500, 1000, 2000, 4000, 8000]
    prompt_tokens: Lengths = [64]
    batch_sizes: Lengths = [1]
    prefill_chunk: PositiveInt | None = None
    streaming: StreamingSpec = StreamingSpec()
    speculation: SpeculationSpec = SpeculationSpec()
    workload: Annotated[str, AfterValidator(_known_workload)] = GENERATE.name
    repetition_penalty: Annotated[list[Penalty], Field(min_length=1)] = [1.0]
    corpus: Annotated[str, Field(min_length=1, max_length=4096)] = "builtin"
    budgets: Annotated[list[Size], Field(min_length=1)] = [None]
    allocator: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_known_allocator)]],
        Field(min_length=1),
    ] = [DEFAULT]
    boundary: BoundarySpec | None = None
    repeats: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    devices: list[str] | None = None
    device_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    time_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    stall_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=20, strict=True)] = 3
    max_crashes: Annotated[int, Field(ge=1, le=20, strict=True)] = 2
    memory_snapshot: bool = False

    @model_validator(mode="after")
    def _modes_fit(self) -> "SweepSpec":
        for mode in self.modes:
            if mode not in MODES:
                nearest = difflib.get_close_matches(mode, MODES, 1, 0.0)
                raise ValueError(
                    f"modes: unknown mode {mode!r}; the nearest is {nearest[0]!r} (of {', '.join(MODES)})"
                )
            if self.workload not in MODES[mode].workloads:
                raise ValueError(
                    f"modes: {mode!r} has no workload {self.workload!r}; it has {', '.join(sorted(MODES[mode].workloads))}"
                )
            for engine in self.engines:
                if engine not in MODES[mode].engines:
                    raise ValueError(
                        f"engines: {engine!r} has no mode {mode!r}; it runs on {', '.join(sorted(MODES[mode].engines))}"
                    )
            largest = MODES[mode].decoder.largest_batch
            if largest is not None and max(self.batch_sizes) > largest:
                raise ValueError(
                    f"batch_sizes: {self.batch_sizes} with {mode!r}: it runs at batch size {largest} at most; split the sweep"
                )
            if MODES[mode].decoder.needs_draft and all(model.draft is None for model in self.models):
                raise ValueError(f"modes: {mode!r} needs a draft: give `draft:` to a model")
        return self


def load_spec(text: str, overrides: list[str] | None = None) -> SweepSpec:
    """Parse a sweep file. `overrides`: `key.path=yaml` from `--set`. Raises `SpecError`, nothing else."""
    try:
        raw = strict_yaml.load(text)
    except Surprise as surprise:
        raise SpecError(str(surprise)) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise SpecError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"a sweep file is a mapping of keys to values, not {type(raw).__name__}")
    paths = [override.partition("=")[0] for override in overrides or []]
    for path in paths:
        if paths.count(path) > 1:
            raise SpecError(f"--set {path}: given twice: keep one")
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_spec(raw)


def parse_spec(raw: dict[Any, Any]) -> SweepSpec:
    try:
        return SweepSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_explain(error)) from None
    except RecursionError:
        raise SpecError("the sweep file nests too deeply") from None


def read_spec(path: Path, overrides: list[str] | None = None) -> SweepSpec:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read sweep file {path}: {error}") from None
    return load_spec(text, overrides)


def dump_spec(spec: SweepSpec) -> str:
    """The resolved sweep file: every key with its value; `load_spec(dump_spec(s)) == s`."""
    raw = spec.model_dump(mode="json")
    raw["budgets"] = ["device" if size is None else size for size in spec.budgets]
    return yaml.safe_dump(raw, sort_keys=False)


def _apply_override(raw: dict[Any, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise SpecError(
            f"--set {override!r}: write key=value, e.g. --set lengths=[500,1000] or --set streaming.window=256"
        )
    try:
        value = strict_yaml.load(text)
    except Surprise as surprise:
        raise SpecError(f"--set {path}: {str(surprise).removeprefix('line 1: ')}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise SpecError(f"--set {path}: {text!r} is not YAML: {' '.join(str(error).split())}") from None
    *parents, last = path.split(".")
    node: Any = raw
    for key in parents:
        if isinstance(node, list):
            node = _list_item(node, key, path)
            continue
        node = node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise SpecError(f"--set {path}: {key!r} holds {node!r}, which has no keys")
    if isinstance(node, list):
        _list_item(node, last, path)
        node[int(last)] = value
    else:
        node[last] = value


def _list_item(node: list[Any], key: str, path: str) -> Any:
    if not key.isdecimal() or int(key) >= len(node):
        raise SpecError(f"--set {path}: {key!r} is not one of the {len(node)} items (0 to {len(node) - 1})")
    return node[int(key)]


def _explain(error: ValidationError) -> str:
    """One line from pydantic's first error: key path, value, remedy."""
    first = error.errors(include_url=False)[0]
    location = [
        part
        for part in first["loc"]
        if isinstance(part, int) or part in _known_keys() or first["type"] == "extra_forbidden"
    ]
    path = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        nearest = difflib.get_close_matches(key, _known_keys(), 1, 0.0)
        return (
            f"unknown key {path!r}; the nearest valid key is {nearest[0]!r}"
            if nearest
            else f"unknown key {path!r}"
        )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{path}: missing; add `{path}:`"
    if not path:
        return message
    return f"{path}: {_short(first['input'])} is not valid: {message}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys() -> list[str]:
    return [
        key
        for model in (SweepSpec, ModelSpec, StreamingSpec, SpeculationSpec, BoundarySpec)
        for key in model.model_fields
    ]
