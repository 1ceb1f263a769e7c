"""What no rehearsal shows: bytes outside torch's allocator, and what libraries take from it, step by step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from workers.engines.session import Session
    from workers.meters.nvml import Card


def calibrate(out: Path, model: str) -> None:
    """Write what each step of a process adds to the card, in bytes; `model`: a small one, for the engine's kernels.

    Alone on the card: others' memory would be counted in.
    """
    import torch

    from workers.meters.nvml import Card

    card = Card.visible()
    idle = card.memory()
    device = torch.device("cuda", 0)
    facts = _Facts(card)
    square = _use_libraries(facts, device)
    session = _use_engine(facts, model, device)
    _capture(facts, square)
    del session, square  # alive until here, so that each step adds to the ones before it
    result = {
        "card": card.kind,
        "driver": card.driver_version,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "total": idle.total_bytes,
        "reserve": idle.reserve_bytes,
        "idle": idle.used_bytes,
        "capability": torch.cuda.get_device_capability(),
        "steps": facts.steps,
    }
    out.write_text(json.dumps(result))


class _Facts:
    """The memory of a card after each step."""

    def __init__(self, card: "Card") -> None:
        self._card = card
        self.steps: list[dict[str, Any]] = []

    def step(self, name: str, work: Callable[[], object]) -> None:
        import torch

        work()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        self.steps.append(
            {
                "step": name,
                "outside_allocator": total - free - reserved,
                "nvml_used": self._card.memory().used_bytes,
                "reserved": reserved,
                "allocated": torch.cuda.memory_allocated(),
                "live_blocks": [
                    block["requested_size"]
                    for segment in torch.cuda.memory_snapshot()
                    for block in segment["blocks"]
                    if block["state"] == "active_allocated"
                ],
                "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
            }
        )


def _use_libraries(facts: _Facts, device: "torch.device") -> "torch.Tensor":
    import torch

    from workers.host.child.cuda import load_kernels

    facts.step("context", lambda: torch.zeros(1, device=device))
    square = torch.ones(256, 256, dtype=torch.bfloat16, device=device)
    facts.step("matrix product, bfloat16", lambda: square @ square)
    facts.step("matrix product with a bias", lambda: torch.nn.functional.linear(square, square, square[0]))
    facts.step("set-up of a cell", lambda: load_kernels(torch.bfloat16, 0))
    facts.step("torch.manual_seed", lambda: torch.manual_seed(0))
    facts.step("numbers drawn on the card", lambda: torch.rand(8, device=device))
    return square


def _use_engine(facts: _Facts, model: str, device: "torch.device") -> "Session":
    import torch

    from workers.cell import Cell, ModelRef
    from workers.engines import open_session
    from workers.engines.session import Unmeasured
    from workers.models.load import load_model

    cell = Cell(
        model=ModelRef(target=model),
        mode="baseline",
        engine="eager",
        prompt_tokens=1030,
        length=8,
        prefill_chunk=512,
    )
    loaded = load_model(model, cell.model, device)
    facts.step("weights of a small model", lambda: None)
    session = open_session(cell, loaded, None)
    prompt_BT = torch.randint(0, 1000, (1, 1030))
    facts.step("a run of it, baseline", lambda: session.generate(prompt_BT, 8, Unmeasured()))
    facts.step("a second run", lambda: session.generate(prompt_BT, 8, Unmeasured()))
    return session


def _capture(facts: _Facts, square: "torch.Tensor") -> None:
    import torch

    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            (square @ square).softmax(-1)

    facts.step("a captured graph", capture)
