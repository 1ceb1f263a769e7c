"""What is written down of tensors without memory: each storage once, from allocation to release."""

import pytest
import torch

from workers.rehearsal.passes import NotRehearsable
from workers.rehearsal.stand_in import CUDA, standing_in
from workers.rehearsal.storages import StorageLog


def test_a_storage_counts_once_whatever_views_it() -> None:
    with standing_in(), StorageLog() as log:
        whole = torch.empty(4, 256, dtype=torch.bfloat16, device=CUDA)
        parts = [whole[:2], whole.t(), whole.view(-1)]
        del whole
        assert log.events == [2048]
        parts.clear()
        assert log.events == [2048, ~0]


def test_temporaries_come_and_go_in_the_order_of_the_code() -> None:
    weight = torch.empty(8, 8, device="meta")
    with standing_in(), StorageLog([weight]) as log:
        x = torch.empty(2, 8, device=CUDA)
        x = (x @ weight) + 1
        del x
    assert log.events == [64, 64, 64, ~1, ~0, ~2]


def test_an_operation_seen_before_is_answered_alike() -> None:
    with standing_in(), StorageLog() as log:
        kept = [torch.cat([torch.empty(3, 5, device=CUDA)] * 2, dim=1).transpose(0, 1) for _ in range(2)]
    assert [part.stride() for part in kept] == [(1, 10)] * 2
    assert log.events == [60, 120, ~0, 60, 120, ~3]


def test_what_lies_on_the_host_is_not_counted() -> None:
    with standing_in(), StorageLog() as log:
        on_host = torch.zeros(100)
        on_card = on_host.to("cuda")
        back = on_card.cpu()
        values = back.tolist()
    assert log.events == [400]
    assert (on_card.device.type, back.device.type, len(values)) == ("meta", "cpu", 100)


def test_python_that_reads_a_value_sees_no_padding_and_no_end_of_text() -> None:
    with standing_in(), StorageLog():
        mask = torch.ones(1, 9, dtype=torch.bool, device=CUDA)
        assert mask.all()
        assert mask.sum() != 1
        assert mask.is_cuda
        assert mask.device == torch.device("cuda", 0)
        assert mask.nonzero().shape == (0, 2)


def test_events_are_forgotten_and_what_lives_is_given() -> None:
    with standing_in(), StorageLog() as log:
        kept = torch.empty(8, device=CUDA)
        log.clear()
        fresh = kept + 1
        del kept, fresh
    assert log.events == [32, ~0]


def test_what_follows_from_pythons_own_numbers_is_known_through_a_view() -> None:
    with standing_in(), StorageLog():
        position_BT = torch.ones(1, 2, dtype=torch.int64, device=CUDA) * 7
        assert position_BT[0][1] == 7
        assert bool((position_BT[:, 0] == 7).all())
        unknown_BT = torch.empty(1, 2, dtype=torch.int64, device=CUDA)
        assert int(unknown_BT[0][1]) == 0


def test_a_mask_picks_all_where_nobody_knows_its_values() -> None:
    with standing_in(), StorageLog():
        rows_BD = torch.empty(5, 3, device=CUDA)
        unknown_B = torch.empty(5, dtype=torch.bool, device=CUDA)
        assert rows_BD[unknown_B].shape == (5, 3)
        rows_BD[unknown_B] = rows_BD[unknown_B] + 1
        known_B = torch.arange(5, device=CUDA) < 2
        assert rows_BD[known_B].shape == (2, 3)


def test_the_tokens_of_experts_are_shared_out_where_nobody_knows_them() -> None:
    with standing_in(), StorageLog():
        rows_TD = torch.empty(11, 3, device=CUDA)
        counts = torch.empty(4, dtype=torch.int64, device=CUDA).tolist()
        assert [len(part) for part in rows_TD.split(counts, dim=0)] == [5, 2, 2, 2]
        assert [len(part) for part in rows_TD.split([4, 7])] == [4, 7]


def test_a_long_text_on_the_host_takes_no_memory() -> None:
    with standing_in(), StorageLog():
        ids_T = torch.empty(2**40, dtype=torch.int64, device=CUDA).cpu()
    assert (ids_T.numel(), ids_T.untyped_storage().nbytes()) == (2**40, 8)


def test_passes_without_end_are_refused() -> None:
    with standing_in(), StorageLog(), pytest.raises(NotRehearsable, match="more than 300,000 times"):
        _take_and_free_without_end()


def _take_and_free_without_end() -> None:
    while True:
        torch.empty(8, device=CUDA)
