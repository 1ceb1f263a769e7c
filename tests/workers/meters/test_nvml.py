import pytest
import torch

from workers.meters.nvml import Card, NoDevice, list_uuids, resolve

CARDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", "GPU-aaaa-1"),
        ("2", "GPU-cccc-3"),
        ("GPU-aabb-2", "GPU-aabb-2"),
        ("GPU-c", "GPU-cccc-3"),
        ("MIG-1234/5/6", "MIG-1234/5/6"),
    ],
)
def test_resolve(visible, expected):
    assert resolve(visible, CARDS) == expected


@pytest.mark.parametrize("visible", ["3", "", "GPU-aa", "GPU-dddd", "NoDevFiles"])
def test_what_fits_no_card_or_several_is_refused(visible):
    with pytest.raises(NoDevice, match="CUDA_VISIBLE_DEVICES"):
        resolve(visible, CARDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_no_driver_is_said_in_one_line():
    with pytest.raises(NoDevice, match="no NVIDIA driver"):
        Card.visible({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_card_that_cuda_sees():
    card = Card(list_uuids()[0])
    memory = card.memory()
    assert memory.total_bytes >= torch.cuda.get_device_properties(0).total_memory
    assert 0 <= memory.used_bytes < memory.total_bytes
    assert memory.reserve_bytes > 0
    assert card.read().device_bytes is not None
    with pytest.raises(NoDevice):
        Card("GPU-00000000-0000-0000-0000-000000000000")
