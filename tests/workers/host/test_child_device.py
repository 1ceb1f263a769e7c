"""A cell's device inside its process, where no cell runs."""

from workers.host.child.cuda import CudaDevice


def test_a_context_that_cannot_be_created_leaves_no_figures_of_the_allocator(monkeypatch) -> None:
    """The first call to a card that is full fails before torch keeps any count."""
    monkeypatch.setattr(
        "workers.host.child.limits.configure_malloc", lambda: None
    )  # it is for a process of its own
    device = CudaDevice()
    device.note_failure()
    found = device.at_failure(reported_free=0)
    assert (found.free, found.allocated, found.reserved, found.snapshot) == (0, None, None, None)
    assert set(device.peaks()) == {None}
