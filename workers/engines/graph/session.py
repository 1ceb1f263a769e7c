"""The graph engine's session: one cell of one loaded model."""

from typing import TYPE_CHECKING

import torch

from workers.attempt import InEffect, Phase, ScoreBucket
from workers.cell import Cell
from workers.engines.graph import score
from workers.engines.graph.decode import Rules, new_state
from workers.engines.graph.execution import Run, execute, most_tokens, stages_of
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels import PLAIN, kernels_of
from workers.engines.graph.model import Cache, CachedModel
from workers.engines.graph.prefill import new_prefill
from workers.engines.graph.ring import RingCache, ring_of
from workers.engines.graph.speculate import Oracle, draw_oracle, new_round
from workers.engines.graph.weights import Weights, describe
from workers.engines.session import Generated, Recorder, Unmeasured, recording
from workers.modes import CachePolicy

if TYPE_CHECKING:
    from workers.models.load import LoadedModel

SCORE_CHUNK = 128


class GraphSession:
    """Holds at most one run, ready to execute: what `warm_up` prepared, or what `generate` needed."""

    def __init__(self, cell: Cell, target: "LoadedModel", draft: "LoadedModel | None") -> None:
        self._cell = cell
        self._target = describe(target.model)
        self._draft = describe(draft.model) if draft is not None else None
        self._rules = Rules(cell.repetition_penalty, tuple(sorted(target.eos_ids)))
        self._kernels = kernels_of(self._target)
        self._run: Run | None = None
        self._recording: tuple[torch.Tensor, Oracle] | None = None

    @property
    def _gamma(self) -> int:
        return self._cell.speculation.gamma if self._cell.speculation else 0

    def in_effect(self) -> InEffect:
        cache = self._run.prefill.target.cache if self._run else self._cache(self._target, 1, 1)
        ring = cache.ring if isinstance(cache, RingCache) else None
        return InEffect(
            cache_class=type(cache).__name__,
            attn_implementation=f"graph-{self._kernels.name}",
            dtype=str(self._target.dtype).removeprefix("torch."),
            sinks=ring.sinks if ring else None,
            window=ring.reach - 1 if ring else None,
            gamma=self._gamma or None,
            repetition_penalty=self._rules.penalty,
        )

    @torch.inference_mode()
    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        """Compiles, captures, reads the prompt once (into rings only a chunk: all passes are alike) and chooses a
        token; a full cache gives its blocks back."""
        if self._cell.workload == "score":
            self.score(prompt_BT[0], Unmeasured())
            return
        run = self._prepared(prompt_BT, self._cell.length, Unmeasured())
        bounded = isinstance(run.prefill.target.cache, RingCache)
        read_BT = prompt_BT[:, : run.prefill.chunk] if bounded else prompt_BT
        run.begin(read_BT.to(self._target.device))
        run.clear()

    @torch.inference_mode()
    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        if self._run is None:
            recorder.phase(Phase.PREPARE)
        run = self._prepared(prompt_BT, new_tokens, recorder)
        run.clear()  # not afterwards: what the cache held at the end is read then
        return execute(run, prompt_BT.to(self._target.device), recorder)

    @torch.inference_mode()
    def score(self, ids_T: torch.Tensor, recorder: Recorder) -> list[ScoreBucket]:
        cache = self._cache(self._target, 1, len(ids_T))
        recorder.count_cache_with(cache.nbytes)
        chunk = self._chunk(cache, SCORE_CHUNK)
        return score.score(self._reader(self._target, cache), ids_T.to(self._target.device), chunk, recorder)

    @torch.inference_mode()
    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        cache = self._cache(self._target, 1, len(ids_T))
        return score.logits(self._reader(self._target, cache), ids_T.to(self._target.device))

    def _prepared(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Run:
        """A run of this shape: the one at hand, or a new one."""
        B, T = prompt_BT.shape
        oracle = self._oracle(prompt_BT, length, recorder)
        if self._run is None or not self._run.fits(B, T, length, oracle):
            self._run = None  # its memory first
            spec = self._draft is not None
            self._run = self._new_run(B, T, length, speculative=spec, drafting=spec, oracle=oracle)
        return self._run

    def _new_run(
        self,
        batch: int,
        prompt_tokens: int,
        length: int,
        *,
        speculative: bool,
        drafting: bool,
        oracle: Oracle | None,
    ) -> Run:
        gamma = self._gamma if speculative else 0
        reach = most_tokens(prompt_tokens, length, gamma)
        device = self._target.device
        target = self._reader(self._target, self._cache(self._target, batch, reach))
        state = new_state(batch, length, gamma + 1, self._target.vocab_size, self._rules.penalty, device)
        draft = None
        if drafting and self._draft is not None:
            draft = self._reader(self._draft, self._cache(self._draft, batch, reach))
        round_ = new_round(gamma, oracle, device) if speculative else None
        stages = stages_of(target, draft, state, self._rules, round_)
        prefill = new_prefill(target, draft, batch, prompt_tokens, self._chunk(target.cache, prompt_tokens))
        run = Run(state, self._rules, round_, stages, prefill)
        if self._kernels is not PLAIN:
            run.reserve(gamma + 2)
            state.head.fill_(1)
            for stage in (prefill.stage, *stages) if prefill.worth_a_graph else stages:
                stage.capture(tuple(reader.cache for reader in run.readers), reach)
            run.clear()
        return run

    def _reader(self, weights: Weights, cache: Cache) -> CachedModel:
        return CachedModel(weights, cache, self._kernels)

    def _cache(self, weights: Weights, batch: int, tokens: int) -> Cache:
        streaming = self._cell.streaming
        if self._cell.mode_spec.policy is CachePolicy.FULL or streaming is None:
            return FullCache(weights, batch, tokens)
        if self._cell.mode_spec.policy is CachePolicy.WINDOW:
            return RingCache(weights, batch, ring_of(0, streaming.sinks + streaming.window, self._gamma))
        return RingCache(weights, batch, ring_of(streaming.sinks, streaming.window, self._gamma))

    def _chunk(self, cache: Cache, default: int) -> int:
        asked = self._cell.prefill_chunk or default
        return min(asked, cache.longest_pass) if cache.longest_pass is not None else asked

    def _oracle(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Oracle | None:
        """Where acceptance is injected: the greedy output, recorded once per prompt and length."""
        speculation = self._cell.speculation
        if speculation is None or speculation.acceptance is None or self._draft is None:
            return None
        if self._recording is not None:
            prompt, oracle = self._recording
            if torch.equal(prompt, prompt_BT) and len(oracle.recorded_T) == length:
                return oracle
        acceptance = speculation.acceptance
        rates = acceptance if isinstance(acceptance, tuple) else (acceptance,) * speculation.gamma
        recorded_T = self._record(prompt_BT, length, recorder)
        oracle = draw_oracle(recorded_T, rates, self._cell.seed, self._target.device)
        self._recording = prompt_BT, oracle
        return oracle

    def _record(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> torch.Tensor:
        """Greedy output through the verification pass, its proposal always the same: where rounding depends on
        the rows of a pass, the recording is what the verification will say.
        """
        self._run = None
        run = self._new_run(1, prompt_BT.shape[1], length, speculative=True, drafting=False, oracle=None)
        with recording(recorder) as heard:
            return execute(run, prompt_BT.to(self._target.device), heard).ids_BT[0]
