"""The eager engine's session: transformers `generate` as people run it, under a cache policy, with or without a draft.

B batch, T tokens of a text, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList

from workers.attempt import InEffect, Phase, ScoreBucket
from workers.cell import Cell
from workers.engines.eager.clock import ForwardClock
from workers.engines.eager.draft import Asked, Blind, Draft, Rounds, drafting
from workers.engines.eager.forced import NoteEos, SuppressEos, TokenCount
from workers.engines.eager.own_state import own_state_of
from workers.engines.eager.policies import CACHING, feed_chunk
from workers.engines.eager.ring import StreamingCache
from workers.engines.eager.score import read, score_through, skim
from workers.engines.session import Generated, Recorder, Unmeasured, recording
from workers.engines.shared.oracle import Oracle, Recording, draw_oracle
from workers.models.cache_tensors import cache_bytes
from workers.models.load import LoadedModel

#: All but cuDNN's attention, which builds a plan for each length of the cache that it meets (40 ms on an H200 with
#: torch 2.11). A process that lives for one cell would pay that at every token of a baseline, and measure nothing else.
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

#: New tokens of a warm-up: a few rounds of any gamma.
_WARM_UP_TOKENS = 16


class CachedSession:
    """One cell over caches of its policy: one for the target, one for the draft."""

    def __init__(self, cell: Cell, target: LoadedModel, draft: LoadedModel | None) -> None:
        self._cell = cell
        self._target = target.model
        self._draft = draft.model if draft is not None else None
        self._eos_ids = sorted(target.eos_ids)
        self._vocab_size = target.vocab_size
        self._caching = CACHING[cell.mode_spec.policy]
        self._device = target.model.device
        self._recording = Recording()
        with self._caching(self._target, cell):
            pass  # refuses, here and not in the first forward, what the policy cannot do
        if self._draft is not None:
            with self._caching(self._draft, cell):
                pass

    def in_effect(self) -> InEffect:
        config = self._generation_config(1)
        with self._caching(self._target, self._cell) as cache:
            slots = cache.slots if isinstance(cache, StreamingCache) else None
            return InEffect(
                cache_class=type(cache).__name__ if cache is not None else "the model's own",
                attn_implementation=self._target.config.get_text_config(decoder=True)._attn_implementation,
                dtype=str(self._target.dtype).removeprefix("torch."),
                sinks=slots.sinks if slots else None,
                window=slots.window if slots else None,
                gamma=self._cell.speculation.gamma if self._cell.speculation else None,
                repetition_penalty=config.repetition_penalty,
            )

    @torch.no_grad()
    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        """A few tokens behind the cell's own prompt, or its first chunks; an oracle is recorded here."""
        if self._cell.workload == "score":
            chunk = feed_chunk(self._cell) or 1
            self.score(prompt_BT[0, : 2 * chunk + 1], Unmeasured())
            return
        self._oracle(prompt_BT, self._cell.length, Unmeasured())
        self.generate(prompt_BT, min(self._cell.length, _WARM_UP_TOKENS), Unmeasured())

    @torch.no_grad()
    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        recorder.phase(Phase.PREPARE)
        oracle = self._oracle(prompt_BT, new_tokens, recorder)
        rounds = Rounds()
        speculation = self._cell.speculation
        with ExitStack() as stack:
            target_cache = stack.enter_context(self._caching(self._target, self._cell))
            if self._draft is None or speculation is None:
                return Generated(*self._generate(target_cache, None, prompt_BT, new_tokens, recorder))
            draft = self._draft
            draft_cache = stack.enter_context(self._caching(draft, self._cell))
            assert draft_cache is not None

            def candidates(asked: Asked) -> Draft:
                return Draft(asked, speculation.gamma, draft_cache, rounds, oracle)

            stack.enter_context(drafting(self._target, candidates))
            # A draft reads two tokens after a round that was accepted whole, one otherwise.
            draft_clock = stack.enter_context(ForwardClock(draft, 1, 2).running())
            width = speculation.gamma + 1
            verify_clock = stack.enter_context(ForwardClock(self._target, width, width).running())
            ids_BT, eos_at = self._generate(target_cache, draft_cache, prompt_BT, new_tokens, recorder)
            return Generated(
                ids_BT,
                eos_at,
                rounds=rounds.rounds,
                prompt_is_a_round=True,
                drafted=rounds.drafted,
                accepted=rounds.accepted,
                draft_step_s=draft_clock.median_s(),
                verify_step_s=verify_clock.median_s(),
            )

    @torch.no_grad()
    def score(self, ids_T: torch.Tensor, recorder: Recorder) -> list[ScoreBucket]:
        chunk = feed_chunk(self._cell)
        assert chunk is not None
        with self._caching(self._target, self._cell) as cache, sdpa_kernel(_ATTENTION_KERNELS):
            recorder.count_cache_with(lambda: cache_bytes(cache))
            return score_through(self._target, cache, ids_T.to(self._device), chunk, recorder)

    @torch.no_grad()
    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        with self._caching(self._target, self._cell) as cache, sdpa_kernel(_ATTENTION_KERNELS):
            rows = read(self._target, cache, ids_T[None].to(self._device), 1)
            return torch.cat([row[0].float().cpu() for row in rows])

    def _generate(
        self,
        cache: Cache | None,
        draft_cache: Cache | None,
        prompt_BT: torch.Tensor,
        new_tokens: int,
        recorder: Recorder,
    ) -> tuple[torch.Tensor, int | None]:
        """`generate` of the target, drafted by whatever `drafting` context is open. [B, produced] on the host."""
        prompt_tokens = prompt_BT.shape[1]
        drafted = self._cell.speculation.gamma if self._cell.speculation else 0
        processors = LogitsProcessorList()
        note = None
        if self._eos_ids:
            note = NoteEos(self._eos_ids, prompt_tokens, new_tokens + drafted + 1, self._device)
            processors.extend([note, SuppressEos(self._eos_ids, self._device)])

        recorder.phase(Phase.PREFILL)
        models = (self._target, cache), (self._draft, draft_cache)
        readers = [(m, c) for m, c in models if m is not None and c is not None]
        with (
            own_defaults(self._target),
            own_defaults(self._draft),
            own_state_of(self._target) as own,
            sdpa_kernel(_ATTENTION_KERNELS),
        ):
            recorder.count_cache_with(lambda: cache_bytes([c for _, c in readers] or own.latest))
            self._feed(readers, prompt_BT)
            sequence_BT = self._target.generate(
                prompt_BT.to(self._device),
                generation_config=self._generation_config(new_tokens),
                logits_processor=processors,
                **({} if cache is None else {"past_key_values": cache}),
                assistant_model=self._draft,
                streamer=TokenCount(recorder),
            )
        return sequence_BT[:, prompt_tokens:].cpu(), note.first(new_tokens) if note else None

    def _feed(self, readers: list[tuple[PreTrainedModel, Cache]], prompt_BT: torch.Tensor) -> None:
        """Read the prompt up to its last token in chunks, where the policy or the cell asks for chunks."""
        chunk = feed_chunk(self._cell)
        if chunk is not None and prompt_BT.shape[1] > 1:
            skim(readers, prompt_BT[:, :-1].to(self._device), chunk)

    def _oracle(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Oracle | None:
        """Where acceptance is injected: the oracle that knows the greedy output of this prompt."""
        speculation = self._cell.speculation
        if speculation is None or speculation.acceptance is None:
            return None

        def record() -> Oracle:
            with (
                self._caching(self._target, self._cell) as cache,
                drafting(self._target, lambda asked: Blind(asked, speculation.gamma)),
                recording(recorder) as heard,
            ):
                ids_BT, _ = self._generate(cache, None, prompt_BT, new_tokens, heard)
            return draw_oracle(ids_BT[0].to(self._device), speculation, self._vocab_size, self._cell.seed)

        return self._recording.oracle(prompt_BT, new_tokens, record)

    def _generation_config(self, new_tokens: int) -> GenerationConfig:
        """Greedy, and nothing else but the penalty, which looks at prompt and new tokens alike."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            repetition_penalty=self._cell.repetition_penalty,
        )


@contextmanager
def own_defaults(model: PreTrainedModel | None) -> Iterator[None]:
    """`generate` fills what a call leaves open from the model's own file: sampling, penalties, end-of-text ids."""
    if model is None:
        yield
        return
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
