"""The slot arithmetic against a dict that remembers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engines.shared.slots import RingSlots


@given(
    sinks=st.integers(0, 6),
    window=st.integers(1, 9),
    gamma=st.integers(0, 5),
    spare=st.integers(0, 4),
    rounds=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
)
@settings(max_examples=150)
def test_every_query_finds_exactly_what_it_may_see(
    sinks: int, window: int, gamma: int, spare: int, rounds: list[tuple[int, int]]
) -> None:
    """Rounds that draft up to gamma tokens and keep some; a slot really holds the position that was written last."""
    ring = RingSlots(sinks, window, gamma + spare)
    slots: dict[int, int] = {}
    head = 0
    for drafted, kept in rounds:
        drafted = min(drafted, gamma)
        for position in range(head, head + drafted + 1):
            slots[ring.slot(position)] = position
        written = head + drafted + 1
        for query in range(head, written):
            found = {
                held
                for slot in slots
                if (held := ring.held(slot, written)) <= query
                and (slot < sinks or (held >= sinks and held > query - ring.sliding_window))
            }
            may_see = {p for p in range(query + 1) if p < sinks or p > query - ring.sliding_window}
            assert found == may_see
            assert all(slots[ring.slot(p)] == p for p in may_see)
        head += min(kept, drafted) + 1


@given(st.integers(0, 6), st.integers(1, 9), st.integers(1, 300))
def test_tensors_and_numbers_agree(sinks: int, window: int, written: int) -> None:
    ring = RingSlots(sinks, window, 127)
    slot_C = torch.arange(ring.total)
    assert ring.held(slot_C, torch.tensor(written)).tolist() == [ring.held(int(s), written) for s in slot_C]
    position_T = torch.arange(written)
    assert ring.slot(position_T).tolist() == [ring.slot(p) for p in range(written)]


@given(
    sinks=st.integers(0, 5),
    window=st.integers(1, 9),
    gamma=st.integers(0, 8),
    history=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40),
)
def test_spans_and_masks_show_each_query_what_it_may_see(sinks, window, gamma, history) -> None:
    """Each round writes up to gamma + 1 tokens and keeps some, at least one of them."""
    slots = RingSlots(sinks=sinks, window=window, slack=gamma)
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
        visible_QC = slots.visible(torch.arange(head, head + count), head + count).tolist()
        now = kept | {position: (position, turn) for _, position in written}
        for query, visible_C in zip(range(head, head + count), visible_QC, strict=True):
            seen = sorted(memory[slot] for slot, visible in enumerate(visible_C) if visible)
            may_see = [p for p in range(query + 1) if p < sinks or p >= query - window]
            assert seen == [now[position] for position in may_see]
        accepted = min(count, max(1, keep))
        kept |= {position: (position, turn) for position in range(head, head + accepted)}
        head += accepted


def test_a_span_ends_at_the_sinks_and_at_the_end_of_the_ring() -> None:
    slots = RingSlots(sinks=2, window=3, slack=1)
    assert slots.total == 2 + 3 + 1 + 1
    assert slots.spans(0, 2) == [(0, 0, 2)]
    assert slots.spans(1, 2) == [(1, 0, 1), (2, 1, 1)]
    assert slots.spans(6, 2) == [(6, 0, 1), (2, 1, 1)]
