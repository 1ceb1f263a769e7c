"""What no rehearsal shows: bytes outside torch's allocator, and what libraries take from it, step by step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def calibrate(out: Path, model: str) -> None:
    """Write what each step of a process adds to the card, in bytes; `model`: a small one, for the engine's kernels.

    Alone on the card: others' memory would be counted in.
    """
    import torch

    from workers.cell import Cell, ModelRef
    from workers.engines import open_session
    from workers.engines.session import Unmeasured
    from workers.host.child.cuda import load_kernels
    from workers.meters.nvml import Card
    from workers.models.load import load_model

    card = Card.visible()
    idle = card.memory()
    facts: list[dict[str, Any]] = []

    def step(name: str, work: Callable[[], object]) -> None:
        work()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        stats = torch.cuda.memory_stats()
        facts.append(
            {
                "step": name,
                "outside_allocator": total - free - torch.cuda.memory_reserved(),
                "nvml_used": card.memory().used_bytes,
                "reserved": torch.cuda.memory_reserved(),
                "allocated": torch.cuda.memory_allocated(),
                "live_blocks": [
                    block["requested_size"]
                    for segment in torch.cuda.memory_snapshot()
                    for block in segment["blocks"]
                    if block["state"] == "active_allocated"
                ],
                "retries": stats.get("num_alloc_retries", 0),
            }
        )

    device = torch.device("cuda", 0)
    step("context", lambda: torch.zeros(1, device=device))
    square = torch.ones(256, 256, dtype=torch.bfloat16, device=device)
    step("matrix product, bfloat16", lambda: square @ square)
    step("matrix product with a bias", lambda: torch.nn.functional.linear(square, square, square[0]))
    step("set-up of a cell", lambda: load_kernels(torch.bfloat16, 0))
    cell = Cell(
        model=ModelRef(target=model),
        mode="baseline",
        engine="eager",
        prompt_tokens=1030,
        length=8,
        prefill_chunk=512,
    )
    loaded = load_model(model, cell.model, device)
    step("weights of a small model", lambda: None)
    session = open_session(cell, loaded, None)
    prompt_BT = torch.randint(0, 1000, (1, 1030))
    step("a run of it, baseline", lambda: session.generate(prompt_BT, 8, Unmeasured()))
    step("a second run", lambda: session.generate(prompt_BT, 8, Unmeasured()))
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            (square @ square).softmax(-1)

    step("a captured graph", capture)
    result = {
        "card": card.kind,
        "driver": card.driver_version,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "total": idle.total_bytes,
        "reserve": idle.reserve_bytes,
        "idle": idle.used_bytes,
        "capability": torch.cuda.get_device_capability(),
        "steps": facts,
    }
    out.write_text(json.dumps(result))
