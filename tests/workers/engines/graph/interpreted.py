"""Run as a process of its own, with TRITON_INTERPRET=1: every kernel against its twin, on a CPU, over shapes that are
no multiples of anything. Prints one line per comparison; ends with an error if one is out of bounds."""

import importlib
import sys
from types import SimpleNamespace

import torch
from triton.runtime import interpreter

from tests.workers.engines import layer_by_layer
from tests.workers.engines.eager.tiny import loaded
from tests.workers.engines.graph.tiny import build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.engines.graph import kernels, open_session
from workers.engines.graph.families import describe
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.graphs import Stage
from workers.engines.graph.kernels.attend_prompt import attend_chunk
from workers.engines.graph.kernels.attend_window import attend_window, attend_window_plain
from workers.engines.graph.ring import RingCache
from workers.engines.graph.rope import angles
from workers.engines.graph.session import GraphSession
from workers.engines.graph.weights import Attention, Rotary, Weights
from workers.engines.shared.slots import RingSlots
from workers.modes import Speculation

_patch = interpreter._patch_lang_tensor


def _patch_for_numpy_24(tensor, scope):  # numpy 2.4 refuses int() of an array of one
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_for_numpy_24
Stage.capture = lambda self: None  # type: ignore[method-assign]
# Few enough programs that each has several units of a cache to read.
blocks = importlib.import_module("workers.engines.graph.kernels.attend_blocks")
blocks.multiprocessors = lambda device: 3


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


def families_alike() -> None:
    """Norms of heads and of what is added, soft caps, learned scores, several ropes, windows, experts, neighbours rotated, latents: a
    row alone, a chunk, a prompt in one pass."""
    for family, mode in (
        *(
            ("olmo2", "streaming"),
            ("gemma2", "baseline"),
            ("gemma3_text", "streaming"),
            ("smollm3", "baseline"),
        ),
        *(
            ("qwen3_moe", "streaming"),
            ("gpt_oss", "baseline"),
            ("granite", "streaming"),
            ("glm4", "baseline"),
        ),
        *(("deepseek_v2", "baseline"), ("deepseek_v2", "streaming"), ("deepseek_v3", "baseline")),
    ):
        target = loaded(layer_by_layer.build(family, dtype=torch.float32))
        asked = cell(mode, window=2)
        expected = open_session(asked, target, None).logits(tokens(6)[0])
        found = fused(open_session(asked, target, None)).logits(tokens(6)[0])
        check(f"{family} {mode}", found, expected, 1e-5)
    for family in ("gemma2", "gpt_oss", "deepseek_v2"):
        target = loaded(layer_by_layer.build(family, dtype=torch.float32))
        for chunk in (None, 70):
            asked = cell("baseline", prefill_chunk=chunk)
            expected, actual = (
                session.generate(tokens(80), 3, Heard()).ids_BT
                for session in (open_session(asked, target, None), fused(open_session(asked, target, None)))
            )
            if not torch.equal(actual, expected):
                sys.exit(f"{family}, chunk {chunk}: {actual} is not {expected}")


def decoding_alike() -> None:
    """Through chunks of a prompt, penalty, rounds that roll back; a prompt of several blocks."""
    for mode, prompt, gamma in (("streaming+spec", 9, 3), ("baseline+spec", 130, 3)):
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
    neox = build("neox", torch.float32, layers=1)
    mixture, latents = (
        loaded(layer_by_layer.build(family, dtype=torch.float32)) for family in ("gpt_oss", "deepseek_v3")
    )
    for target, mode in (
        *((neox, "streaming"), (neox, "baseline"), (mixture, "baseline")),
        *((latents, "baseline"), (latents, "streaming")),
    ):
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
        # Of latents a row's place in its tile depends on the pass, and numpy's product of a row on its place: rounding here.
        check(f"rows {mode}", together, alone, 1e-6 if target is latents else 0.0)


def chunks_of_every_head() -> None:
    """A prompt's chunk over blocks: heads of one power of two, of two, of neither; before blocks are full, and behind."""
    for head_dim, heads, kv_heads in ((80, 2, 2), (16, 4, 2), (24, 2, 1)):
        turned = Rotary(torch.full((head_dim // 8,), 0.3, dtype=torch.float64))
        how = Attention(scale=head_dim**-0.5)
        shape = SimpleNamespace(
            kv_heads=kv_heads, kept_dims=(head_dim, True), dtype=torch.float32, device=torch.device("cpu")
        )
        for start, count in ((0, 33), (62, 20)):
            caches = [FullCache(shape, 2, 128, 1) for _ in range(2)]  # type: ignore[arg-type]
            for cache in caches:
                cache.reserve(start + count)
            for mine, other in zip(caches[0].blocks, caches[1].blocks, strict=True):
                other.copy_(mine.normal_())
            at = torch.tensor(start)
            turn = angles(at, count, turned, caches[0].far_limit, torch.float32)
            q_k_v = tuple(torch.randn(2, count, each, head_dim) for each in (heads, kv_heads, kv_heads))
            out, expected = (
                attend(*q_k_v, cache, 0, at, turn, how)
                for attend, cache in zip((attend_chunk, blocks.attend_blocks_plain), caches, strict=True)
            )
            check(f"chunk {head_dim} {start} {count}", out, expected, 1e-6)
            for mine, other in zip(caches[0].blocks, caches[1].blocks, strict=True):
                check("kept", mine, other, 1e-7)


def operands(weights: Weights, batch: int, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(batch, count, heads, weights.head_dim)
        for heads in (weights.heads, weights.kv_heads, weights.kv_heads)
    )


def a_chunk_longer_than_the_ring() -> None:
    """Attention of a prompt's chunk, and what it leaves in the ring: before the first wrap, across it, after it."""
    weights = describe(build("llama", torch.float32, layers=1).model)
    for sinks, start, count in ((2, 0, 5), (2, 0, 20), (2, 7, 20), (2, 20, 3), (0, 3, 18)):
        caches = [RingCache(weights, 2, RingSlots(sinks, 4, 3), 1) for _ in range(2)]
        for mine, other in zip(held(caches[0]), held(caches[1]), strict=True):
            other.copy_(mine.normal_())
        at = torch.tensor(start)
        turn = angles(at, count, weights.ropes[0], caches[0].far_limit, torch.float32)
        q_k_v, how = operands(weights, 2, count), weights.layers[0].attention
        out, expected = (
            attend(*q_k_v, cache, 0, at, turn, how)
            for attend, cache in zip((attend_window, attend_window_plain), caches, strict=True)
        )
        check(f"window {sinks} {start} {count}", out, expected, 1e-6)
        for mine, other in zip(held(caches[0]), held(caches[1]), strict=True):
            check("ring", mine, other, 1e-7)


def held(cache: RingCache) -> tuple[torch.Tensor, torch.Tensor]:
    return cache.k_LBKCD, cache.v_LBKCD


def units_of_every_length() -> None:
    """Blocks shared out among programs, in units of one, two and four: alike whatever the rows of a pass."""
    weights = describe(build("neox", torch.float32, layers=1).model)
    blocks.OCTAVE = 2
    for start, count in ((0, 3), (62, 4), (640, 3)):
        caches = [FullCache(weights, 1, 1024, 1) for _ in range(2)]
        for cache in caches:
            cache.reserve(start + count)
        for mine, other in zip(caches[0].blocks, caches[1].blocks, strict=True):
            other.copy_(mine.normal_())
        q_k_v = operands(weights, 1, count)
        together, expected = (
            read(attend, weights, caches[index], q_k_v, start)
            for index, attend in enumerate((blocks.attend_blocks, blocks.attend_blocks_plain))
        )
        check(f"blocks {start} {count}", together, expected, 1e-6)
        rows = [tuple(x[:, row : row + 1] for x in q_k_v) for row in range(count)]
        alone = [
            read(blocks.attend_blocks, weights, caches[0], row, start + at) for at, row in enumerate(rows)
        ]
        check("row by row", torch.cat(alone, 1), together, 0.0)


def read(
    attend, weights: Weights, cache: FullCache, q_k_v: tuple[torch.Tensor, ...], start: int
) -> torch.Tensor:
    at = torch.tensor(start)
    turn = angles(at, q_k_v[0].shape[1], weights.ropes[0], cache.far_limit, torch.float32)
    return attend(*q_k_v, cache, 0, at, turn, weights.layers[0].attention)


if __name__ == "__main__":
    a_chunk_longer_than_the_ring()
    units_of_every_length()
    chunks_of_every_head()
    logits_alike()
    families_alike()
    decoding_alike()
    a_row_alone_is_the_row_among_others()
