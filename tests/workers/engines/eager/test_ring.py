"""The slot arithmetic against a dict, over random shapes and histories of acceptance."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.eager.ring import Slots

CPU = torch.device("cpu")


@given(
    sinks=st.integers(0, 5),
    window=st.integers(1, 9),
    gamma=st.integers(0, 8),
    history=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40),
)
def test_every_position_a_query_may_see_lies_where_the_arithmetic_says(sinks, window, gamma, history) -> None:
    """Each round writes up to gamma + 1 tokens and keeps some, at least one of them."""
    slots = Slots(sinks=sinks, window=window, slack=gamma)
    memory: dict[int, tuple[int, int]] = {}  # slot -> (position, round that wrote it)
    kept: dict[int, tuple[int, int]] = {}  # position -> the same, of the text that stayed
    head = 0
    for turn, (asked, keep) in enumerate(history):
        count = min(asked, gamma + 1)
        written = [
            (slot + i, head + offset + i) for slot, offset, n in slots.spans(head, count) for i in range(n)
        ]
        assert [position for _, position in written] == list(range(head, head + count))
        for slot, position in written:
            memory[slot] = (position, turn)
        hidden_QC = slots.hidden(head, count, CPU).tolist()
        now = kept | {position: (position, turn) for _, position in written}
        for query, hidden_C in zip(range(head, head + count), hidden_QC, strict=True):
            seen = sorted(memory[slot] for slot, hidden in enumerate(hidden_C) if not hidden)
            visible = [p for p in range(query + 1) if p < sinks or p >= query - window]
            assert seen == [now[position] for position in visible]
        accepted = min(count, max(1, keep))
        kept |= {position: (position, turn) for position in range(head, head + accepted)}
        head += accepted


def test_a_span_ends_at_the_sinks_and_at_the_end_of_the_ring() -> None:
    slots = Slots(sinks=2, window=3, slack=1)
    assert slots.total == 2 + 3 + 1 + 1
    assert slots.spans(0, 2) == [(0, 0, 2)]
    assert slots.spans(1, 2) == [(1, 0, 1), (2, 1, 1)]
    assert slots.spans(6, 2) == [(6, 0, 1), (2, 1, 1)]
