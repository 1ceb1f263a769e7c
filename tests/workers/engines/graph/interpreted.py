"""Run as a process of its own, with TRITON_INTERPRET=1: every kernel against its twin, on a CPU, over shapes that are
no multiples of anything. Prints one line per comparison; ends with an error if one is out of bounds."""

import sys

import torch
from triton.runtime import interpreter

from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.graph import kernels, open_session
from workers.engines.graph.graphs import Stage
from workers.engines.graph.session import GraphSession
from workers.modes import Speculation

_patch = interpreter._patch_lang_tensor


def _patch_for_numpy_24(tensor, scope):  # numpy 2.4 refuses int() of an array of one
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_for_numpy_24
Stage.capture = lambda self, caches, most_tokens: None  # type: ignore[method-assign]


def fused(session: GraphSession) -> GraphSession:
    session._kernels = kernels.FUSED
    return session


def check(what: str, actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    gap = float((actual.double() - expected.double()).norm() / expected.double().norm())
    print(f"{what}: {gap:.1e}", flush=True)
    if not gap <= limit:
        sys.exit(f"{what}: {gap} is above {limit}")


def logits_alike() -> None:
    for family in ("neox", "llama"):
        for mode in ("streaming", "baseline"):
            ids = tokens(8)
            target = build(family, torch.float32, layers=1)
            expected = open_session(cell(mode, window=2), target, None).logits(ids[0])
            actual = fused(open_session(cell(mode, window=2), target, None)).logits(ids[0])
            check(f"{family} {mode}", actual, expected, 1e-5)


def decoding_alike() -> None:
    """Through chunks of a prompt, penalty, rounds that roll back; a prompt of several blocks."""
    for mode, prompt, gamma in (("streaming+spec", 9, 3), ("baseline+spec", 252, 3)):
        target, draft = (
            build("llama", torch.float32, layers=1),
            build("llama", torch.float32, layers=1, seed=2),
        )
        fields = {"speculation": Speculation(gamma=gamma, acceptance=0.6)} if gamma else {}
        asked = cell(mode, window=2, repetition_penalty=1.2, length=6, prefill_chunk=100, **fields)
        expected = open_session(asked, target, draft).generate(tokens(prompt), 6, Heard())
        actual = fused(open_session(asked, target, draft)).generate(tokens(prompt), 6, Heard())
        print(mode, actual.ids_BT.tolist(), actual.rounds, flush=True)
        if not torch.equal(actual.ids_BT, expected.ids_BT) or actual.eos_at != expected.eos_at:
            sys.exit(f"{mode}: {actual} is not {expected}")


def a_row_alone_is_the_row_among_others() -> None:
    """Bit for bit: the sum of a row does not depend on how many rows a pass holds."""
    target = build("neox", torch.float32, layers=1)
    for mode in ("streaming", "baseline"):
        readers = []
        for _ in range(2):
            session = fused(open_session(cell(mode, window=2), target, None))
            readers.append(session._reader(session._target, 1, 64))
        ids = tokens(12)
        with torch.inference_mode():
            for reader in readers:
                reader.cache.reserve(12)
                reader.prefill(ids[:, :9], torch.tensor(0), alone=False)
            together = readers[0].read(ids[:, 9:], torch.tensor(9))
            alone = torch.cat([readers[1].read(ids[:, i : i + 1], torch.tensor(i)) for i in range(9, 12)])
        check(f"rows {mode}", together, alone, 0.0)


if __name__ == "__main__":
    logits_alike()
    decoding_alike()
    a_row_alone_is_the_row_among_others()
