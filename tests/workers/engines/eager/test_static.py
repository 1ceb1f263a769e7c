"""transformers' static cache: the tokens of a growing one, memory taken at once, and what cannot have it."""

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.memory import predict, predict_boundary
from orchestrator.predict.shape import shape_for
from tests.workers.engines.eager.tiny import FAMILIES, cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from workers.attempt import Device
from workers.cell import Cell, ModelRef
from workers.engines.eager import open_session
from workers.engines.session import ModeUnsupported
from workers.modes import MODES
from workers.units import GiB


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_a_growing_cache_in_memory_that_does_not_grow(family: str, chunk: int | None) -> None:
    model, found, heard = loaded(tiny(family)), [], {}
    for mode in ("baseline", "static"):
        heard[mode] = Heard()
        session = open_session(cell(mode, length=30, chunk=chunk), model, None)
        found.append(session.generate(text(10)[None], 30, heard[mode]).ids_BT)
    assert torch.equal(*found)
    assert set(heard["static"].kv_bytes) == {heard["baseline"].kv_bytes[-1]}
    assert session.in_effect().cache_class == "StaticCache"


def test_a_state_has_no_static_cache() -> None:
    config = Mamba2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8, n_groups=1
    )
    with pytest.raises(ModeUnsupported, match="Mamba2ForCausalLM has no static cache: it keeps a state"):
        open_session(cell("static"), loaded(Mamba2ForCausalLM(config).eval()), None)


def test_there_is_no_draft_beside_it() -> None:
    assert "static+spec" not in MODES


def test_its_peak_is_rehearsed_and_its_boundary_is_where_the_peak_fits() -> None:
    ref = ModelRef(target="random:pythia-70m")
    shape = shape_for(ref.target, ref)
    card = DeviceProfile.of(
        Device(kind="NVIDIA H100 80GB HBM3", uuid="0", node="n", total_bytes=80 * GiB, reserve_bytes=0)
    )

    def asked(length: int) -> Cell:
        return Cell(
            model=ref, mode="static", engine="eager", prompt_tokens=100, length=length, budget=4 * GiB
        )

    short, long = (predict(asked(n), shape, None, card, loaded=True) for n in (64, 1064))
    assert short.predicted_by == "rehearsal"
    assert long.kv_bytes - short.kv_bytes == pytest.approx(1000 * short.bytes_per_token, rel=0.03)
    boundary = predict_boundary(asked(1), shape, None, card)
    assert boundary is not None
    room = card.capacity(4 * GiB)
    assert predict(asked(boundary), shape, None, card).peak_bytes <= room
    assert predict(asked(boundary + 64), shape, None, card).peak_bytes > room
