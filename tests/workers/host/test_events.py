import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempt import Failure, InEffect, Measured, Phase, Step
from workers.cell import Cell, Lease, ModelRef
from workers.host.events import (
    BadLine,
    Checkpoint,
    ContextReady,
    Entered,
    Finished,
    Limited,
    Produced,
    Request,
    decode,
    decode_request,
    encode,
    encode_request,
)
from workers.modes import ScoreBucket, Speculation, Streaming
from workers.outcome import Outcome
from workers.ranks import Ranks

FINISHED = Finished(
    outcome=Outcome.OOM_DECODE,
    ended_s=1.5,
    measured=Measured(
        new_tokens=3,
        ttft_s=0.25,
        in_effect=InEffect(cache_class="RingCache", attn_implementation="sdpa", dtype="float32"),
    ),
    failure=Failure(error_type="OutOfMemoryError", error_message="näh\n\x00", memory_snapshot=b"\x80\x00"),
    data_peak_bytes=7,
    workload="score",
    results=(ScoreBucket(position_start=0, position_end=128, nll_sum=math.pi, num_tokens=9),),
    output_ids=(1, 2, 3),
)


@pytest.mark.parametrize(
    "event",
    [
        Limited(0.5, 7),
        ContextReady(9),
        Entered(Phase.PREFILL, 0.25),
        Produced(4),
        Checkpoint(Step(token_index=1, t_s=0.5, allocated_bytes=None, reserved_bytes=2, kv_cache_bytes=3)),
        FINISHED,
        Finished(outcome=Outcome.OK, ended_s=2.0, measured=Measured()),
    ],
)
def test_events_survive_the_pipe(event):
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == event


@given(st.binary())
def test_what_is_no_event_is_a_bad_line(line):
    with contextlib.suppress(BadLine):
        decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'["Finished", {}]',
        b'["Entered", ["x"]]',
        b'["Entered", {"phase": "x", "at_s": 1}]',
        b"1",
        b'["os", {}]',
    ],
)
def test_bad_lines(line):
    with pytest.raises(BadLine):
        decode(line)


def test_request_survives_the_socket():
    cell = Cell(
        model=ModelRef(target="pocket", draft="pocket-draft"),
        mode="streaming+spec",
        engine="eager",
        prompt_tokens=8,
        length=9,
        streaming=Streaming(sinks=4, window=32),
        speculation=Speculation(gamma=2, acceptance=(0.5, 0.25)),
    )
    lease = Lease(lease_id="a.1.b", cell=cell, attempt=1, time_limit_s=2.5, stall_timeout_s=1.0)
    request = Request(
        lease=lease,
        total_bytes=1,
        reserve_bytes=2,
        idle_bytes=3,
        threads=4,
        started_s=0.1,
        ranks=Ranks(1, 2, "a.1.b"),
    )
    assert decode_request(encode_request(request)) == request
