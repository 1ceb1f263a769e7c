import dataclasses
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal.record import LIGHT_SCHEMA, SCHEMA, Record, to_attempts, to_frame
from tests.orchestrator.fake_run import demo_attempts
from workers.attempt import Attempt, Device, Failure, InEffect, Measured, Phase, Sample, ScoreBucket, Step
from workers.outcome import Outcome

_FLOATS = st.floats(allow_nan=False, width=64)
_INTS = st.integers(-(2**63), 2**63 - 1)


def _filled(kind: type, **fixed: object) -> st.SearchStrategy:
    """Any value of a flat dataclass, by the types of its fields: a field that is added later is covered too."""
    by_type = {int: _INTS, float: _FLOATS, str: st.text(max_size=20), bytes: st.binary(), bool: st.booleans()}
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in fixed:
            continue
        options = typing.get_args(hint) or (hint,)
        fields[name] = st.one_of(st.none() if o is type(None) else by_type[o] for o in options)
    return st.builds(kind, **fields, **{name: st.just(value) for name, value in fixed.items()})


def _attempts() -> st.SearchStrategy:
    cells = st.sampled_from([attempt.cell for attempt in demo_attempts()])
    measured = st.builds(
        dataclasses.replace, _filled(Measured, in_effect=None), in_effect=st.none() | _filled(InEffect)
    )
    many = {"samples": Sample, "steps": Step, "scores": ScoreBucket}
    special = {
        "cell": cells,
        "outcome": st.sampled_from(Outcome),
        "phase": st.sampled_from(Phase),
        "device": st.none() | _filled(Device),
        "measured": measured,
        "failure": st.none() | _filled(Failure),
        "output_ids": st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        **{name: st.lists(_filled(kind), max_size=3).map(tuple) for name, kind in many.items()},
    }
    plain = _filled(Attempt, **dict.fromkeys(special))
    return st.builds(dataclasses.replace, plain, **special)


@given(st.lists(_attempts(), max_size=4))
def test_an_attempt_comes_back_as_it_went_in(attempts: list[Attempt]) -> None:
    frame = to_frame([Record("run", attempt, 7) for attempt in attempts])

    assert frame.schema == SCHEMA
    assert to_attempts(frame) == attempts


def test_light_rows_make_attempts_without_series() -> None:
    attempt = demo_attempts()[0]
    frame = to_frame([Record("run", attempt)]).select(LIGHT_SCHEMA.names())

    assert to_attempts(frame) == [dataclasses.replace(attempt, samples=(), steps=(), output_ids=())]


def test_what_is_not_available_is_null_and_never_zero() -> None:
    attempt = dataclasses.replace(demo_attempts()[0], device=None, peak_device_bytes=None)
    row = to_frame([Record("run", attempt)])

    assert row.select("device_kind", "peak_device_bytes", "predicted_peak_bytes", "oom_token_index").row(0) == (
        None, None, None, None,
    )  # fmt: skip


def test_text_that_is_not_unicode_costs_no_row() -> None:
    failure = Failure(error_type="X", error_message="bad \ud800 surrogate", last_output="\udcff")
    attempt = dataclasses.replace(demo_attempts()[0], failure=failure)

    assert to_frame([Record("run", attempt)])["error_message"].item() == "bad ? surrogate"


def test_a_value_of_another_type_is_refused_not_bent() -> None:
    attempt = demo_attempts()[0]
    bent = dataclasses.replace(attempt, peak_device_bytes=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Int64"):
        to_frame([Record("run", bent)])
