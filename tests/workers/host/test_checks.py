"""What the live objects do is compared with what the cell asks, for every mode."""

import dataclasses

import pytest

from workers.attempt import InEffect
from workers.cell import Cell, ModelRef
from workers.host.child.checks import check_in_effect
from workers.models import LoadError
from workers.modes import MODES, Speculation, Streaming


def cell(mode: str) -> Cell:
    policy, decoder = MODES[mode].policy, MODES[mode].decoder
    return Cell(
        model=ModelRef(target="tiny", draft="tiny", dtype="float32"),
        mode=mode,
        engine="eager",
        prompt_tokens=8,
        length=8,
        streaming=Streaming(sinks=4, window=12) if policy.parameters is Streaming else None,
        speculation=Speculation(gamma=3) if decoder.parameters is Speculation else None,
    )


def right(asked: Cell) -> InEffect:
    """By hand: what each mode's live objects should say."""
    sinks, window = {
        "full": (None, None),
        "static": (None, None),
        "streaming": (4, 12),
    }.get(asked.mode_spec.policy.name, (0, 16))
    return InEffect(
        cache_class="any",
        attn_implementation="sdpa",
        dtype="float32",
        sinks=sinks,
        window=window,
        gamma=3 if asked.speculation else None,
        repetition_penalty=1.0,
    )


@pytest.mark.parametrize("mode", MODES)
def test_every_setting_of_every_mode_is_read_back(mode: str) -> None:
    asked = cell(mode)
    found = right(asked)
    check_in_effect(asked, found)
    for name, wrong in (
        ("sinks", 3),
        ("window", 11),
        ("gamma", 7),
        ("dtype", "bfloat16"),
        ("repetition_penalty", 1.2),
    ):
        with pytest.raises(LoadError, match=f"{name} is {wrong}, .* was asked for"):
            check_in_effect(asked, dataclasses.replace(found, **{name: wrong}))
