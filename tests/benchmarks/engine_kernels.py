"""Kernels on a real device: against their twins, and plain against speculative bit for bit."""

import json
from typing import Any

import torch

from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.graph import open_session
from workers.engines.graph.kernels import FUSED, PLAIN
from workers.modes import Speculation


def say(what: str, **values: Any) -> None:
    print(json.dumps({"check": what, **values}), flush=True)


def gap(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return float((actual - expected).norm() / expected.norm())


def on(device: torch.device, family: str, dtype: torch.dtype, **fields: Any):
    model = build(family, dtype, **fields)
    model.model.to(device)
    return model


@torch.inference_mode()
def check(device: torch.device) -> None:
    """Relative errors against the same weights in float64 on the host; then losslessness through the graphs."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for family in ("neox", "llama") if dtype != torch.float16 else ("neox-sequential",):
            for mode in ("streaming", "baseline"):
                ids = tokens(300)[0]
                target = on(device, family, dtype)
                fused = open_session(cell(mode, window=20), target, None).logits(ids)
                twin = open_session(cell(mode, window=20), target, None)
                twin._kernels = PLAIN
                exact_model = build(family, torch.float32)
                exact_model.model.load_state_dict(target.model.state_dict())
                exact_model.model.to(torch.float64)
                exact = open_session(cell(mode, window=20), exact_model, None).logits(ids)
                say(
                    f"{family} {mode} {str(dtype)[6:]}",
                    kernels=gap(fused, exact),
                    twins=gap(twin.logits(ids), exact),
                )
    for family in ("neox", "llama"):
        for mode in ("streaming", "baseline"):
            _check_prompt(device, family, mode)
    for dtype in (torch.float32, torch.bfloat16):
        for family in ("neox", "llama"):
            target, draft = on(device, family, dtype), on(device, family, dtype, layers=1, seed=3)
            for policy in ("streaming", "baseline"):
                plain = open_session(cell(policy, window=20, repetition_penalty=1.2), target, None)
                expected = plain.generate(tokens(90), 700, Heard()).ids_BT
                for acceptance in (None, 0.8):
                    speculation = Speculation(gamma=4, acceptance=acceptance)
                    asked = cell(f"{policy}+spec", window=20, repetition_penalty=1.2, speculation=speculation)
                    generated = open_session(asked, target, draft).generate(tokens(90), 700, Heard())
                    same = int((generated.ids_BT == expected).long().cumprod(1).sum())
                    say(
                        f"{family} {policy}+spec {str(dtype)[6:]} {acceptance}",
                        equal_to_plain=f"{same} of 700", rounds=generated.rounds, accepted=generated.accepted,
                    )  # fmt: skip


def _check_prompt(device: torch.device, family: str, mode: str) -> None:
    """Chunks of a prompt, by the captured graph (rings) or over blocks, and as plain torch; against float64."""
    prompt = tokens(700)
    errors = []
    exact_model = build(family, torch.float32)
    exact_model.model.to(torch.float64)
    exact = open_session(cell(mode, window=20, prefill_chunk=100), exact_model, None)
    exact.generate(prompt, 4, Heard())
    for kernels in (FUSED, PLAIN):
        session = open_session(
            cell(mode, window=20, prefill_chunk=100), on(device, family, torch.float32), None
        )
        session._kernels = kernels
        session.generate(prompt, 4, Heard())
        errors.append(gap(session._execution.prefill.last_BE, exact._execution.prefill.last_BE))
    say(f"prompt {family} {mode}", kernels=errors[0], twins=errors[1])
