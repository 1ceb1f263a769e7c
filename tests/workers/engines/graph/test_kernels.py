"""The Triton kernels against their twins: interpreted on a CPU, compiled on a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.workers.engines import layer_by_layer
from tests.workers.engines.graph.tiny import FAMILIES, build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.families import FAMILIES as FAMILY_TABLE
from workers.engines.graph import open_session
from workers.modes import Speculation


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("kernels", ["interpreted", "interpreted_packed"])
def test_interpreted(kernels: str) -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.workers.engines.graph.{kernels}"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_speculation_is_bit_exact_on_a_gpu(family: str) -> None:
    """A row is computed alike in a pass of one token and of gamma + 1, so not even a near-tie may part them."""
    target, draft = build(family, torch.bfloat16), build(family, torch.bfloat16, layers=1, seed=2)
    for loaded in (target, draft):
        loaded.model.to("cuda")
    for policy in ("baseline", "streaming"):
        expected_BT = open_session(cell(policy), target, None).generate(tokens(9), 600, Heard()).ids_BT
        for acceptance in (None, 0.8):
            asked = cell(f"{policy}+spec", speculation=Speculation(gamma=4, acceptance=acceptance))
            generated = open_session(asked, target, draft).generate(tokens(9), 600, Heard())
            assert torch.equal(generated.ids_BT, expected_BT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILY_TABLE)
def test_every_family_on_a_gpu(family: str) -> None:
    """Float32 against the plain twins in float64: logits, and tokens behind a prompt in one pass and in chunks; in bfloat16
    speculation changes no token."""
    prompt_1T = layer_by_layer.text(200)[None]
    for windowed in {False, family in layer_by_layer.WINDOWED}:
        ids_T = layer_by_layer.text(70)
        exact = layer_by_layer.build(family, windowed=windowed)
        single, target, draft = (
            layer_by_layer.build(family, dtype=dtype, windowed=windowed, seed=seed).to("cuda")
            for dtype, seed in ((torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 1))
        )
        for mode in ("baseline",) if windowed else ("baseline", "streaming"):
            expected = layer_by_layer.logits(exact, mode, "graph", ids_T)
            found = layer_by_layer.logits(single, mode, "graph", ids_T)
            assert layer_by_layer.gap(found, expected) < 1e-4
            exact_BT = layer_by_layer.generates(exact, None, mode, "graph", prompt_1T, Heard()).ids_BT
            for chunk in (None, 48):

                def run(model: Any, other: Any, mode: str, chunk: int | None = chunk) -> torch.Tensor:
                    return layer_by_layer.generates(
                        model, other, mode, "graph", prompt_1T, Heard(), chunk
                    ).ids_BT

                assert torch.equal(run(single, None, mode), exact_BT), chunk
                plain_BT = run(target, None, mode)
                assert torch.equal(run(target, draft, f"{mode}+spec"), plain_BT), chunk


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_not_a_byte_more_on_a_gpu() -> None:
    target = build("neox", torch.bfloat16)
    target.model.to("cuda")
    session, heard = open_session(cell("streaming"), target, None), Heard()
    reserved: list[int] = []
    heard.tokens = lambda known: reserved.append(torch.cuda.memory_reserved())  # type: ignore[method-assign]
    session.warm_up(tokens(9))
    session.generate(tokens(9), 60, Heard())
    session.generate(tokens(9), 60, heard)
    assert len(set(reserved)) == 1
