"""Recorded events through the allocator model: does it reserve what the card reserved, event by event?"""

import time
from pathlib import Path

import numpy as np

from orchestrator.predict.allocator.caching import CachingAllocator
from orchestrator.predict.allocator.replay import replay
from orchestrator.predict.allocator.settings import AllocatorSettings
from orchestrator.predict.device import FIRST_PASS_KERNELS


def replay_file(path: Path) -> None:
    """Print a line per recorded run: events, the largest and the mean error of reserved bytes, and the failure's."""
    events = 0
    with np.load(path) as content:
        keys = sorted({name.rsplit("/", 1)[0] for name in content.files})
        print(f"{'run':44} {'events':>8} {'exact':>7} {'largest':>9} {'peak':>8} {'failure':>12} {'s':>5}")
        for key in keys:
            run = {
                name: content[f"{key}/{name}"]
                for name in ("trace", "reserved", "marks", "before", "failed", "allowed")
            }
            events += len(run["trace"])
            print(_line(key, run), flush=True)
    print(f"{events:,} events")


def _line(key: str, run: dict[str, np.ndarray]) -> str:
    allowed = int(run["allowed"][0])
    allocator = CachingAllocator(
        AllocatorSettings(expandable_segments="/expandable/" in key), allowed_bytes=allowed or None
    )
    began = time.perf_counter()
    loaded = {int(event): FIRST_PASS_KERNELS for event in run["marks"][:1]}
    replayed = replay([int(event) for event in run["trace"]], allocator, loaded)
    seconds = time.perf_counter() - began
    modelled, real = np.array(replayed.reserved, np.int64), run["reserved"]
    start, end = int(run["before"][0]), min(len(modelled), len(real) - int(run["failed"][0]))
    error = modelled[start:end] - real[start:end]
    peak = modelled[:end].max() / real[:end].max() - 1
    failure = "-"
    if run["failed"][0]:
        at = None if replayed.failure is None else replayed.failure.event
        failure = "none" if at is None else f"{at - (len(real) - 1):+d} events"
    elif replayed.failure is not None:
        failure = f"at {replayed.failure.event}"
    return (
        f"{key:44} {len(real):>8} {np.mean(error == 0):>7.2%} {np.abs(error).max() / 2**20:>5.0f} MiB "
        f"{peak:>8.2%} {failure:>12} {seconds:>5.1f}"
    )
