"""The eager engine's session: transformers' `generate` as people run it, under a cache policy and a decoder.

B batch, T tokens of a text, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList

from workers.attempt import InEffect, Phase
from workers.cell import Cell
from workers.engines.eager.decoders import DecoderRun, OpenDecoder, recording
from workers.engines.eager.first_passes import refusing_first_passes
from workers.engines.eager.forced import NoteEos, NoteNonFinite, SuppressEos, TokenCount
from workers.engines.eager.kept_prefix import KeptPrefix, read_prefix
from workers.engines.eager.own_state import own_state_of
from workers.engines.eager.policies import OpenCache
from workers.engines.eager.score import read, score_through, skim
from workers.engines.eager.stored import is_stored_otherwise
from workers.engines.session import Generated, ModeUnsupported, Recorder, Unmeasured, telling_failures
from workers.engines.shared.oracle import Oracle, Recording, draw_oracle
from workers.engines.sizes import eager_chunk
from workers.models.cache_tensors import cache_bytes
from workers.models.load import LoadedModel
from workers.modes import ScoreBucket

#: All but cuDNN's attention, which builds a plan for each length of the cache that it meets (40 ms on an H200 with
#: torch 2.11). A process that lives for one cell would pay that at every token of a baseline, and measure nothing else.
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

#: New tokens of a warm-up: a few rounds of any gamma.
_WARM_UP_TOKENS = 16


class CachedSession:
    """Runs one cell over caches of its policy, one for each model. Each run opens new ones."""

    def __init__(
        self,
        cell: Cell,
        target: LoadedModel,
        draft: LoadedModel | None,
        open_cache: OpenCache,
        open_decoder: OpenDecoder,
    ) -> None:
        self._cell = cell
        self._open_cache, self._open_decoder = open_cache, open_decoder
        self._target = target.model
        self._draft = draft.model if draft is not None else None
        self._eos_ids = sorted(target.eos_ids)
        self._vocab_size = target.vocab_size
        self._device = target.model.device
        self._recording = Recording()
        self._kept: KeptPrefix | None = None
        for model in (self._target, self._draft):
            if model is not None:
                with self._open_cache_of(model):
                    pass  # refuses, here and not in the first forward, what the policy cannot do

    def in_effect(self) -> InEffect:
        config = self._generation_config(1, {})
        with self._open_cache_of(self._target) as cache:
            context = getattr(cache, "context", None)  # of the caches that do not show a query everything
            return InEffect(
                cache_class=type(cache).__name__ if cache is not None else "the model's own",
                attn_implementation=self._target.config.get_text_config(decoder=True)._attn_implementation,
                dtype=str(self._target.dtype).removeprefix("torch."),
                sinks=context.sinks if context else None,
                window=context.window if context else None,
                gamma=self._cell.speculation.gamma if self._cell.speculation else None,
                repetition_penalty=config.repetition_penalty,
            )

    @torch.no_grad()
    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        """Generate a few tokens behind the cell's own prompt, or score its first chunks. An oracle is recorded here."""
        if not self._cell.workload_spec.decodes:
            chunk = eager_chunk(self._cell) or 1
            self.score(prompt_BT[0, : 2 * chunk + 1], Unmeasured())
            return
        new_tokens = self._cell.workload_spec.new_tokens(self._cell)
        self._oracle(prompt_BT, new_tokens, Unmeasured())
        self.generate(prompt_BT, min(new_tokens, _WARM_UP_TOKENS), Unmeasured())

    @torch.no_grad()
    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        recorder.phase(Phase.PREPARE)
        oracle = self._oracle(prompt_BT, new_tokens, recorder)
        return self._generate(self._open_decoder, oracle, prompt_BT, new_tokens, recorder)

    @torch.no_grad()
    def keep(self, prefix_T: torch.Tensor) -> None:
        """Read it in the chunks in which a whole prompt is read, so that all passes are the same. A draft's cache is not kept."""
        chunk = eager_chunk(self._cell)
        whole = len(prefix_T) // (chunk or 1) * (chunk or 1)
        with self._reading() as cache:
            if cache is not None and whole > 0 and not self._cell.mode_spec.decoder.verifies:
                self._kept = read_prefix(self._kept, self._target, cache, prefix_T[:whole], chunk)

    @torch.no_grad()
    def score(self, ids_T: torch.Tensor, recorder: Recorder) -> list[ScoreBucket]:
        chunk = eager_chunk(self._cell)
        assert chunk is not None
        with self._reading() as cache:
            recorder.count_cache_with(lambda: cache_bytes(cache))
            return score_through(self._target, cache, ids_T.to(self._device), chunk, recorder)

    @torch.no_grad()
    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        with self._reading() as cache:
            rows = read(self._target, cache, ids_T[None].to(self._device), 1)
            return torch.cat([row[0].float().cpu() for row in rows])

    @contextmanager
    def _reading(self) -> Iterator[Cache | None]:
        """Yield the target's cache, for forwards of a given text."""
        with (
            self._open_cache_of(self._target) as cache,
            sdpa_kernel(_ATTENTION_KERNELS),
            refusing_first_passes(self._target),
        ):
            yield cache

    def _generate(
        self,
        open_decoder: OpenDecoder,
        oracle: Oracle | None,
        prompt_BT: torch.Tensor,
        new_tokens: int,
        recorder: Recorder,
    ) -> Generated:
        prompt_tokens = prompt_BT.shape[1]
        processors = LogitsProcessorList()
        strange = NoteNonFinite(prompt_tokens, self._device) if is_stored_otherwise(self._cell) else None
        if strange is not None:
            processors.append(strange)
        note = None
        if self._eos_ids:
            note = NoteEos(self._eos_ids, prompt_tokens, new_tokens + self._cell.rows, self._device)
            processors.extend([note, SuppressEos(self._eos_ids, self._device)])

        run = DecoderRun(self._cell, self._target, self._draft, self._open_cache_of, oracle)
        with ExitStack() as stack:
            cache = stack.enter_context(self._open_cache_of(self._target))
            decoding = stack.enter_context(open_decoder(run))
            recorder.phase(Phase.PREFILL)
            readers = [] if cache is None else [(self._target, cache), *decoding.readers]
            for model in (self._target, *(model for model, _ in decoding.readers)):
                stack.enter_context(own_defaults(model))
            own = stack.enter_context(own_state_of(self._target))
            stack.enter_context(sdpa_kernel(_ATTENTION_KERNELS))
            stack.enter_context(refusing_first_passes(self._target))
            recorder.count_cache_with(lambda: cache_bytes([c for _, c in readers] or own.latest))
            if cache is not None and self._kept is not None and self._kept.begins(prompt_BT):
                self._kept.put_into(cache, len(prompt_BT))
            self._feed(readers, prompt_BT, recorder)
            sequence_BT = self._target.generate(
                prompt_BT.to(self._device),
                generation_config=self._generation_config(new_tokens, decoding.settings),
                logits_processor=processors,
                **({} if cache is None else {"past_key_values": cache}),
                **decoding.arguments,
                streamer=TokenCount(recorder),
            )
            if strange is not None and (index := strange.first()) is not None:
                raise ModeUnsupported(
                    f"kv_dtype {self._cell.kv_dtype}: logits are not finite at new token {index}: transformers' cache fails here"
                )
            ids_BT = sequence_BT[:, prompt_tokens:].cpu()
            return Generated(ids_BT, note.first(new_tokens) if note else None, **decoding.figures())

    def _feed(
        self, readers: list[tuple[PreTrainedModel, Cache]], prompt_BT: torch.Tensor, recorder: Recorder
    ) -> None:
        """Read the prompt up to its last token in chunks, where the policy or the cell asks for chunks."""
        chunk = eager_chunk(self._cell)
        read = int(readers[0][1].get_seq_length()) if readers else 0  # what was kept of another prompt
        if chunk is not None and prompt_BT.shape[1] - 1 > read:
            skim(readers, prompt_BT[:, read:-1].to(self._device), chunk, recorder.prompt)

    def _oracle(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Oracle | None:
        """Return the oracle that knows the greedy output of this prompt, None where no acceptance is injected."""
        speculation = self._cell.speculation
        if speculation is None or speculation.acceptance is None:
            return None

        def record() -> Oracle:
            with telling_failures(recorder) as heard:
                ids_BT = self._generate(recording, None, prompt_BT, new_tokens, heard).ids_BT
            return draw_oracle(ids_BT[0].to(self._device), speculation, self._vocab_size, self._cell.seed)

        return self._recording.oracle(prompt_BT, new_tokens, record)

    def _open_cache_of(self, model: PreTrainedModel) -> AbstractContextManager[Cache | None]:
        return self._open_cache(model, self._cell)

    def _generation_config(self, new_tokens: int, settings: Mapping[str, Any]) -> GenerationConfig:
        """Return what greedy decoding needs: nothing but the penalty, which counts prompt and new tokens alike."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            repetition_penalty=self._cell.repetition_penalty,
            disable_compile=True,  # of a static cache: a graph of its own for each cell, with memory of its own
            **settings,
        )


@contextmanager
def own_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, `generate` takes nothing from the model's own file: no sampling, penalty, end-of-text ids."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
