"""transformers' caches in fewer bits, by formula: what they really held, to the byte, and a peak on a CPU that is theirs."""

from dataclasses import replace

import pytest

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.eager import cache_bytes
from orchestrator.predict.memory import predict_boundary, predict_by_formula
from orchestrator.predict.shape import shape_for
from tests.orchestrator.fake_run import CPU
from tests.workers.engines.eager.tiny import cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from workers.cell import Cell, ModelRef
from workers.engines.eager import open_session
from workers.units import MiB

REF = ModelRef(target="pocket", dtype="float32")
SHAPE = shape_for("pocket", REF)


def asked(kv_dtype: str, length: int = 3000) -> Cell:
    return Cell(
        model=REF, mode="baseline", engine="eager", prompt_tokens=64, length=length, kv_dtype=kv_dtype, budget=64 * MiB
    )  # fmt: skip


#: Bytes after the prompt and at the end: two layers of four heads of 64 numbers, prompt 200, 300 new tokens, hqq 0.2.8.
HQQ = {
    ("int8", "float32"): (230400, 701440),
    ("int4", "float32"): (128000, 467968),
    ("int8", "bfloat16"): (217600, 584192),
    ("int4", "bfloat16"): (115200, 350720),
}


@pytest.mark.parametrize(("kv_dtype", "dtype"), HQQ)
def test_codes_scales_and_newest_tokens_are_those_of_hqq(kv_dtype: str, dtype: str) -> None:
    shape = replace(SHAPE, windows=(None, None), kv_heads=4, key_dim=64, value_dim=64)
    of_cell = replace(asked(kv_dtype), prompt_tokens=200, model=replace(REF, dtype=dtype))
    assert tuple(cache_bytes(of_cell, shape, tokens) for tokens in (200, 499)) == HQQ[kv_dtype, dtype]


def test_fp8_is_a_byte_a_number() -> None:
    model, heard = tiny("gpt_neox"), Heard()
    session = open_session(replace(cell("baseline", length=30), kv_dtype="fp8"), loaded(model), None)
    session.generate(text(10)[None], 30, heard)
    shape = replace(SHAPE, windows=(None, None), kv_heads=4, key_dim=16, value_dim=16)
    assert heard.kv_bytes[-1] == cache_bytes(asked("fp8"), shape, 39)


def test_the_peak_on_a_cpu_is_that_of_its_cache() -> None:
    card = DeviceProfile.of(CPU)
    peaks = {
        name: predict_by_formula(asked(name), SHAPE, None, card).peak_bytes for name in ("auto", "fp8", "int8", "int4")
    }  # fmt: skip
    assert peaks["int4"] < peaks["int8"] < peaks["auto"]
    assert peaks["fp8"] < peaks["auto"]
    boundary = {name: predict_boundary(asked(name), SHAPE, None, card) for name in ("auto", "fp8")}
    assert boundary["fp8"] > 1.5 * boundary["auto"]  # type: ignore[operator]
