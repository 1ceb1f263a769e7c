"""The queue: nothing lost or doubled, longest first, a warm model preferred but never at the price of the tail."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan import expand
from orchestrator.sweep.work.item import Key, WorkItem
from orchestrator.sweep.work.queue import WorkQueue
from tests.orchestrator.sweep.simulated import device, spec
from workers.cell import ModelRef

CELL = expand(spec())[0]
MODELS = [dataclasses.replace(CELL, model=ModelRef(target=name)) for name in ("x", "y", "z")]
CARD = device("card")


def item(number: int, seconds: float, model: int = 0, **fields: object) -> WorkItem:
    return WorkItem(
        key=Key(str(number), "H100"),
        cell=MODELS[model],
        seconds=seconds,
        rank=(-seconds, 0, number),
        **fields,  # type: ignore[arg-type]
    )


items = st.lists(
    st.tuples(st.floats(1, 100), st.integers(0, 2), st.booleans()),
    max_size=30,
).map(
    lambda rows: [item(k, seconds, model, urgent=urgent) for k, (seconds, model, urgent) in enumerate(rows)]
)


@given(items, st.data())
def test_every_item_comes_out_once_whatever_is_taken_and_pruned(
    some: list[WorkItem], data: st.DataObject
) -> None:
    queue, left = WorkQueue(some), {one.key for one in some}
    while left:
        assert len(queue) == len(left)
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(left)))
            assert queue.remove(key).key == key
        else:
            taken = queue.take(CARD, warm=data.draw(st.lists(st.sampled_from("xyz"))), devices=2)
            assert taken is not None
            key = taken.key
            if data.draw(st.booleans()):
                queue.push(dataclasses.replace(taken, urgent=True))
                continue
        left.remove(key)
        assert abs(queue.seconds - sum(one.seconds for one in queue)) < 1e-6
    assert queue.take(CARD) is None


@given(items)
def test_urgent_first_then_the_longest(some: list[WorkItem]) -> None:
    queue = WorkQueue(some)
    order = [queue.take(CARD) for _ in some]
    assert [one.key for one in order] == [
        one.key for one in sorted(some, key=lambda one: (not one.urgent, one.rank))
    ]


def test_a_warm_model_is_preferred_to_a_longer_cell_but_not_to_one_twice_as_long() -> None:
    queue = WorkQueue(
        [
            item(0, 100, model=0),
            item(1, 60, model=1),
            item(2, 40, model=2),
            *(item(k, 1) for k in range(3, 300)),
        ]
    )
    assert queue.take(CARD, warm=["z"]).key.cell_id == "0"
    assert queue.take(CARD, warm=["z"]).key.cell_id == "2"


def test_at_the_tail_the_longest_goes_first_even_if_it_is_cold() -> None:
    queue = WorkQueue([item(0, 100, model=0), item(1, 60, model=1)])
    assert queue.take(CARD, warm=["y"], devices=2).key.cell_id == "0"


def test_an_item_waits_for_another_device_only_while_there_is_one() -> None:
    queue = WorkQueue([item(0, 10, urgent=True, avoid=frozenset({"card"})), item(1, 5)])
    assert queue.take(CARD, elsewhere=lambda one: True).key.cell_id == "1"
    assert queue.take(CARD, elsewhere=lambda one: True) is None
    assert queue.take(CARD, elsewhere=lambda one: False).key.cell_id == "0"


def test_an_item_that_must_be_alone_is_not_handed_out_with_the_rest() -> None:
    queue = WorkQueue([item(0, 10, urgent=True, alone=True)])
    assert queue.take(CARD) is None
    assert queue.alone().key.cell_id == "0"
