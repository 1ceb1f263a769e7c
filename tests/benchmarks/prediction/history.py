"""torch's record of its allocator's events, made small: what the replay needs, and nothing else."""

from collections.abc import Sequence

import numpy as np

#: Events kept: enough for a prompt of 200 passes over 60 layers.
MAX_EVENTS = 2_000_000


def begin() -> None:
    """Record every event from now on, without stacks."""
    import torch

    torch.cuda.memory._record_memory_history(
        enabled="all", context=None, stacks="python", max_entries=MAX_EVENTS
    )


def live_blocks() -> list[int]:
    """Requested sizes of the blocks that are alive, in the order of their addresses."""
    import torch

    segments = sorted(torch.cuda.memory_snapshot(), key=lambda segment: segment["address"])
    return [
        int(block.get("requested_size") or block["size"])
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]


def end(before: Sequence[int], reserved_before: int, marks_us: Sequence[int]) -> dict[str, np.ndarray]:
    """The events since `begin`, as arrays. `before`, `reserved_before`: what was alive and reserved at that moment.

    `trace`: as `orchestrator.predict.allocator.replay.Trace`, `before` first. `reserved`: bytes after each event. `segments`: the trace's length, the bytes taken
    or given back (negative), and the address of each, in order.
    `marks`: the trace's length at each moment of `marks_us`. `failed`: 1 where the last event found no memory.
    """
    import torch

    entries = torch.cuda.memory._snapshot(0)["device_traces"][0]
    trace: list[int] = list(before)
    reserved: list[int] = [reserved_before] * len(before)
    segments: list[tuple[int, int, int]] = []
    marks: list[int] = []
    index_at: dict[int, int] = {}
    total, failed, waiting = reserved_before, 0, list(marks_us)
    for entry in entries:
        while waiting and entry["time_us"] >= waiting[0]:
            marks.append(len(trace))
            waiting.pop(0)
        action, size = entry["action"], int(entry["size"])
        if action in ("segment_alloc", "segment_map", "segment_free", "segment_unmap"):
            change = size if action in ("segment_alloc", "segment_map") else -size
            total += change
            segments.append((len(trace), change, int(entry["addr"])))
        elif action == "alloc":
            index_at[entry["addr"]] = len(trace)
            trace.append(size)
            reserved.append(total)
        elif action == "free_completed" and entry["addr"] in index_at:
            trace.append(~index_at.pop(entry["addr"]))
            reserved.append(total)
        elif action == "oom":
            trace.append(size)
            reserved.append(total)
            failed = 1
            break
    return {
        "trace": np.array(trace, np.int64),
        "reserved": np.array(reserved, np.int64),
        "segments": np.array(segments, np.int64).reshape(-1, 3),
        "marks": np.array([*marks, *[len(trace)] * len(waiting)], np.int64),
        "before": np.array([len(before)], np.int64),
        "failed": np.array([failed], np.int64),
    }
