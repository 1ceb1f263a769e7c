"""Logits against those of a full cache in the model's dtype."""

from dataclasses import dataclass

import pytest
import torch

from tests.workers.engines.graph.tiny import build, cell, tokens
from workers.engines import open_session
from workers.host.child.workloads.closeness import closeness, twin_of


@dataclass
class Told:
    """A session that knows its logits."""

    rows: torch.Tensor

    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self.rows[: len(ids_T)]


def test_by_hand() -> None:
    """One of four tokens differs: its distributions are (1/2, 1/2) and (3/4, 1/4)."""
    true = torch.tensor([[0.5, 0.5]] * 4).log() + 1.0
    own = true.clone()
    own[2] = torch.tensor([0.25, 0.75]).log()
    found = closeness(Told(own), lambda: Told(true), torch.arange(5))  # type: ignore[arg-type, return-value]
    kl = float(0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2.0 / 3)))
    assert (found.tokens, found.same_choice) == (4, 0.75)
    assert found.kl_mean == pytest.approx(kl / 4, rel=1e-4)
    assert found.kl_p99 == pytest.approx(0.97 * kl, rel=1e-2)


def test_fewer_bits_are_further_away() -> None:
    target, ids_T = build("llama", torch.float32, layers=1), tokens(200)[0]
    of = {}
    for name in ("int8", "int4"):
        asked = cell("baseline", workload="score", prompt_tokens=0, length=199, kv_dtype=name)
        twin = twin_of(asked)
        assert twin is not None
        assert twin.kv_dtype == "auto"
        assert twin_of(twin) is None
        of[name] = closeness(
            open_session(asked, target, None), lambda twin=twin: open_session(twin, target, None), ids_T
        )
    assert 0 < of["int8"].kl_mean < of["int4"].kl_mean
    assert of["int8"].kl_mean < of["int8"].kl_p99
    assert of["int4"].same_choice <= of["int8"].same_choice <= 1


def test_a_window_has_a_twin_that_sees_everything() -> None:
    twin = twin_of(cell("streaming", workload="score", prompt_tokens=0, length=10))
    assert twin is not None
    assert (twin.mode, twin.streaming) == ("baseline", None)
    assert twin_of(cell("recompute", workload="score", prompt_tokens=0, length=10)) is None
