"""A signal is noted and told; what was ignored before stays ignored."""

import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.sweep.stop import stop_signals

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_reason_to_stop(number: signal.Signals) -> None:
    with stop_signals() as stop:
        assert stop.requested() is None
        os.kill(os.getpid(), number)
        assert stop.requested() == f"stopped by {number.name}"


def test_the_first_signal_is_the_reason() -> None:
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested() == "stopped by SIGTERM"


def test_a_handler_that_was_replaced_meanwhile_is_replaced_back() -> None:
    with stop_signals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() == "stopped by SIGTERM"


def test_a_second_interrupt_ends_the_work_and_a_third_does_not_end_its_clean_up() -> None:
    with stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested() is None


def test_a_second_hangup_does_not_end_the_process_before_its_report() -> None:
    with stop_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
