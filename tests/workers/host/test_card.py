"""A card as the device: emulated smaller cards, context, and the proof that it is clean again."""

from collections.abc import Iterator

import pytest
import torch

from tests.workers.host.cells import MiB, gpt_neox, lease
from tests.workers.host.conftest import WITH_FAULTS
from workers.attempt import Phase
from workers.host.device_host import DeviceHost
from workers.outcome import Outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GiB = 2**30


@pytest.fixture(scope="module")
def card() -> Iterator[DeviceHost]:
    host = DeviceHost("node/gpu0", preload=(*WITH_FAULTS, "workers.engines.graph"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2 layers of 2048: 0.5 GiB of weights in float32, 32 KiB of cache per token."""
    return gpt_neox(
        tmp_path_factory.mktemp("models") / "wide",
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=16,
    )


def test_the_host_has_no_context_and_the_device_is_described(card):
    device = card.describe()
    assert device.uuid.startswith(("GPU-", "MIG-"))
    assert device.total_bytes > GiB
    assert device.reserve_bytes > 0
    assert device.driver_version


def test_ok_on_the_whole_card(card, model):
    attempt = card.run(lease(model, length=16))
    assert attempt.outcome is Outcome.OK
    assert attempt.device_dirty is None
    assert 100 * MiB < attempt.context_bytes < 2 * GiB
    assert attempt.measured.peak_allocated_bytes >= attempt.measured.weights_bytes
    used_by_torch = attempt.context_bytes + attempt.measured.peak_reserved_bytes
    assert used_by_torch - 4 * MiB <= attempt.peak_device_bytes <= used_by_torch + 128 * MiB


def test_an_emulated_card_runs_out_of_memory_in_its_allocator(card, wide):
    budget = 3 * GiB
    given = lease(
        wide, budget=budget, length=30_000, prompt_tokens=64, batch_size=16, purpose="probe", time_limit_s=120
    )
    attempt = card.run(given)
    assert (attempt.outcome, attempt.phase) == (Outcome.OOM_DECODE, Phase.DECODE)
    assert attempt.failure.error_type == "OutOfMemoryError"  # not the host's guard
    assert attempt.failure.oom_free_bytes < attempt.failure.oom_requested_bytes + GiB
    assert attempt.peak_device_bytes + card.describe().reserve_bytes <= budget
    assert attempt.peak_device_bytes + card.describe().reserve_bytes > 0.8 * budget
    assert attempt.device_dirty is None


def test_memory_beside_the_allocator_is_the_hosts_to_see(card, model):
    attempt = card.run(lease(model, fault="raw-cuda@decode", budget=3 * GiB))
    assert attempt.outcome is Outcome.OOM_DECODE
    assert attempt.failure.error_type == "EndedByHost"
    assert attempt.device_dirty is None


@pytest.mark.parametrize("fault", ["kill@decode", "segfault@decode"])
def test_clean_after_a_death(card, model, fault):
    attempt = card.run(lease(model, fault=fault))
    assert attempt.outcome is Outcome.CRASHED
    assert attempt.device_dirty is None
    assert card.run(lease(model)).outcome is Outcome.OK


def test_poisoned_context_ends_with_its_process(card, model):
    attempt = card.run(lease(model, fault="device-assert@decode"))
    assert attempt.outcome is Outcome.GPU_FAULT
    assert card.run(lease(model)).outcome is Outcome.OK
