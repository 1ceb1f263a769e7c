"""The last line of a traceback comes first, whatever it is wrapped in."""

from workers.cause import cause, cause_first

RAY = """ActorDiedError: The actor died because of an error raised in its creation task, \x1b[36mray::DeviceActor.__init__()\x1b[39m (pid=1, ip=10.0.0.1, actor_id=2)
  File "/venv/ray/launch.py", line 40, in __init__
    self._actor = getattr(importlib.import_module(module), name)(*arguments)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/workers/meters/nvml.py", line 60, in __init__
    raise NoDevice(f"{uuid}: {error}") from None
workers.meters.nvml.NoDevice: MIG-abc: Not Found"""
NESTED = """ray::DeviceActor.describe() (pid=1)
  File "/venv/workers/host/forkserver.py", line 70, in wait_ready
    raise ForkServerError(text)
workers.host.forkserver.ForkServerError: fork server does not start:
Traceback (most recent call last):
  File "/venv/workers/host/forkserver_main.py", line 50, in main
    importlib.import_module(module)
ModuleNotFoundError: No module named 'torch'
"""


def test_the_cause_is_the_last_error_of_the_traceback() -> None:
    assert cause(RAY) == "NoDevice: MIG-abc: Not Found"
    assert cause(NESTED) == "ModuleNotFoundError: No module named 'torch'"


def test_it_comes_first_in_one_line_without_colours_and_nothing_is_lost() -> None:
    told = cause_first(RAY)
    assert told.startswith("NoDevice: MIG-abc: Not Found; in full: ActorDiedError: The actor died")
    assert "\x1b" not in told
    assert "\n" not in told
    assert "line 40, in __init__" in told


def test_a_text_without_a_traceback_is_its_own_cause() -> None:
    text = "The actor died unexpectedly.\n  Worker exit detail: connection error code 2."
    assert cause_first(text) == "The actor died unexpectedly. Worker exit detail: connection error code 2."


def test_a_message_of_several_lines_is_kept_whole() -> None:
    assert (
        cause('x\n  File "a.py", line 1, in f\n    g()\nOSError: no such file\nLook elsewhere.')
        == "OSError: no such file Look elsewhere."
    )


def test_a_traceback_that_was_cut_off_is_told_as_it_is() -> None:
    assert cause('boom\n  File "a.py", line 1, in f') == 'boom File "a.py", line 1, in f'
