import dataclasses
import io
import typing
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal.journal import Journal
from orchestrator.journal.parts import encode
from orchestrator.journal.record import (
    LIGHT_SCHEMA,
    SCHEMA,
    Record,
    to_attempts,
    to_frame,
    to_frame_of_what_fits,
)
from tests.orchestrator.fake_run import demo_attempts
from workers.attempt import Attempt, Device, DeviceShare, Failure, InEffect, Measured, Phase, Sample, Step
from workers.machine_state import MachineState
from workers.modes import ScoreBucket
from workers.outcome import Outcome

_FLOATS = st.floats(allow_nan=False, width=64)
_INTS = st.integers(-(2**63), 2**63 - 1)


_ENDS: dict[type, st.SearchStrategy] = {
    Outcome: st.sampled_from(Outcome), Phase: st.sampled_from(Phase)
}  # fmt: skip
_TYPED: dict[type, st.SearchStrategy] = {
    **_ENDS,
    int: _INTS, float: _FLOATS, str: st.text(max_size=20), bytes: st.binary(), bool: st.booleans()
}  # fmt: skip
#: What a model's config, a file's name or an error's message may hold where such a value is expected.
_SAID: dict[type, st.SearchStrategy] = {
    **_ENDS,
    int: st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 10**30, 1e30, float("inf"), 0.5, "many", True]),
    float: st.floats() | st.integers() | st.sampled_from([10**400, "1.0"]),
    str: st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(["\udcff", "\0", 7]),
    bytes: st.binary(),
    bool: st.booleans() | st.just("yes"),
}


def _filled(
    kind: type, by_type: dict[type, st.SearchStrategy] = _TYPED, **fixed: object
) -> st.SearchStrategy:
    """Any value of a flat dataclass, by the types of its fields: a field that is added later is covered too."""
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in fixed:
            continue
        options = typing.get_args(hint) or (hint,)
        fields[name] = st.one_of(st.none() if o is type(None) else by_type[o] for o in options)
    return st.builds(kind, **fields, **{name: st.just(value) for name, value in fixed.items()})


def _attempts(by_type: dict[type, st.SearchStrategy] = _TYPED) -> st.SearchStrategy:
    cells = [attempt.cell for attempt in demo_attempts()]
    scoring = [dataclasses.replace(cell, workload="score") for cell in cells]
    results = st.lists(_filled(ScoreBucket, by_type), max_size=3).map(tuple)
    measured = st.builds(
        dataclasses.replace,
        _filled(Measured, by_type, in_effect=None),
        in_effect=st.none() | _filled(InEffect, by_type),
    )
    many = {"samples": Sample, "steps": Step, "devices": DeviceShare}
    special = {
        "cell": st.sampled_from(cells),
        "outcome": st.sampled_from(Outcome),
        "phase": st.sampled_from(Phase),
        "device": st.none() | _filled(Device, by_type),
        "measured": measured,
        "machine": st.none() | _filled(MachineState, by_type),
        "failure": st.none() | _filled(Failure, by_type),
        "output_ids": st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        **{name: st.lists(_filled(kind, by_type), max_size=3).map(tuple) for name, kind in many.items()},
    }
    plain = _filled(Attempt, by_type, **dict.fromkeys(special), results=())
    generated = st.builds(dataclasses.replace, plain, **special)
    return generated | st.builds(
        dataclasses.replace, generated, cell=st.sampled_from(scoring), results=results
    )


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


@given(st.lists(_attempts(_SAID), min_size=1, max_size=3))
def test_whatever_was_said_can_be_journaled(attempts: list[Attempt]) -> None:
    """The strictest part of the way: through Parquet, back, and what was typed right is what it was."""
    records = [Record("run", attempt, 10**20) for attempt in attempts]
    data = encode(to_frame_of_what_fits(records))
    frame = pl.read_parquet(io.BytesIO(data))

    assert frame.schema == SCHEMA
    assert frame["lease_id"].len() == len(attempts)
    assert all("predicted_peak_bytes: 1000000" in said for said in frame["left_out"])
    for attempt, row in zip(attempts, frame.iter_rows(named=True), strict=True):
        said = attempt.measured.max_positions
        fits = said is None or (type(said) is int and abs(said) < 2**63)
        assert row["max_positions"] == (said if fits else None)
        assert ("max_positions: " in row["left_out"]) == (not fits)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_positions": 10**30}, f"max_positions: {10**30}"),
        ({"max_positions": 1e30}, "max_positions: 1e+30"),
        ({"eos_at": -(2**63) - 1}, f"eos_at: {-(2**63) - 1}"),
        ({"tokens_per_s": 10**400}, f"tokens_per_s: {'1' + 59 * '0'}"),
    ],
)
def test_a_value_beyond_its_column_is_null_and_told_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, object], said: str
) -> None:
    first, second = demo_attempts()[:2]
    bent = dataclasses.replace(first, measured=dataclasses.replace(first.measured, **fields))
    journal = Journal.open(tmp_path)
    journal.append([Record("run", bent), Record("run", second)])

    none = dict.fromkeys(fields)
    there = dataclasses.replace(first, measured=dataclasses.replace(first.measured, **none))
    with journal.view() as view:
        assert view.whole([0, 1]) == {0: there, 1: second}
        assert view.light["left_out"].to_list() == [said, None]
    assert said in caplog.text
