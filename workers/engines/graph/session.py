"""The graph engine's session: one cell of one loaded model."""

from typing import TYPE_CHECKING

import torch

from workers.attempt import InEffect, Phase, ScoreBucket
from workers.cell import Cell
from workers.engines.graph import score
from workers.engines.graph.cache import GraphCache
from workers.engines.graph.decode import Rules, new_state
from workers.engines.graph.execution import Execution, execute, most_tokens, readers_of, stages_of
from workers.engines.graph.families import describe
from workers.engines.graph.full_cache import FullCache
from workers.engines.graph.kernels import PLAIN, kernels_of
from workers.engines.graph.model import CachedModel
from workers.engines.graph.prefill import new_prefill
from workers.engines.graph.ring import RingCache
from workers.engines.graph.speculate import new_round
from workers.engines.graph.weights import Weights
from workers.engines.session import Generated, Recorder, Unmeasured, recording
from workers.engines.shared.oracle import Oracle, Recording, draw_oracle
from workers.engines.shared.slots import RingSlots
from workers.engines.sizes import RING_SLACK, SCORE_CHUNK
from workers.modes import CachePolicy

if TYPE_CHECKING:
    from workers.models.load import LoadedModel


class GraphSession:
    """Holds at most one run, ready to execute: what `warm_up` prepared, or what `generate` needed."""

    def __init__(self, cell: Cell, target: "LoadedModel", draft: "LoadedModel | None") -> None:
        self._cell = cell
        self._target = describe(target.model)
        self._draft = describe(draft.model) if draft is not None else None
        self._rules = Rules(cell.repetition_penalty, tuple(sorted(target.eos_ids)))
        self._kernels = kernels_of(self._target)
        self._execution: Execution | None = None
        self._recording = Recording()

    @property
    def _gamma(self) -> int:
        return self._cell.speculation.gamma if self._cell.speculation else 0

    def in_effect(self) -> InEffect:
        cache = self._execution.target.cache if self._execution else self._cache(self._target, 1, 1)
        ring = cache.ring if isinstance(cache, RingCache) else None
        return InEffect(
            cache_class=type(cache).__name__,
            attn_implementation=f"graph-{self._kernels.name}",
            dtype=str(self._target.dtype).removeprefix("torch."),
            sinks=ring.sinks if ring else None,
            window=ring.window if ring else None,
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
        read_BT = prompt_BT if run.target.cache.grows else prompt_BT[:, : run.prefill.chunk]
        run.begin(read_BT.to(self._target.device))
        run.clear()

    @torch.inference_mode()
    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        if self._execution is None:
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

    def _prepared(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Execution:
        """A run of this shape: the one at hand, or a new one."""
        B, T = prompt_BT.shape
        oracle = self._oracle(prompt_BT, length, recorder)
        if self._execution is None or not self._execution.fits(B, T, length, oracle):
            self._execution = None  # its memory first
            spec = self._draft is not None
            self._execution = self._new_run(B, T, length, speculative=spec, drafting=spec, oracle=oracle)
        return self._execution

    def _new_run(
        self,
        batch: int,
        prompt_tokens: int,
        length: int,
        *,
        speculative: bool,
        drafting: bool,
        oracle: Oracle | None,
    ) -> Execution:
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
        chunk = self._chunk(target.cache, prompt_tokens)
        prefill = new_prefill(readers_of(target, draft), batch, prompt_tokens, chunk)
        run = Execution(target, draft, prefill, state, self._rules, round_, stages)
        if self._kernels is not PLAIN:
            run.reserve(gamma + 2)
            state.head.fill_(1)
            for stage in (prefill.stage, *stages) if prefill.worth_a_graph else stages:
                stage.capture(tuple(reader.cache for reader in run.readers), reach)
            run.clear()
        return run

    def _reader(self, weights: Weights, cache: GraphCache) -> CachedModel:
        return CachedModel(weights, cache, self._kernels)

    def _cache(self, weights: Weights, batch: int, tokens: int) -> GraphCache:
        streaming = self._cell.streaming
        if self._cell.mode_spec.policy is CachePolicy.FULL or streaming is None:
            return FullCache(weights, batch, tokens)
        sinks, window = streaming.sinks, streaming.window
        if self._cell.mode_spec.policy is CachePolicy.WINDOW:
            sinks, window = 0, sinks + window
        return RingCache(weights, batch, RingSlots(sinks, window, max(self._gamma, RING_SLACK)))

    def _chunk(self, cache: GraphCache, default: int) -> int:
        asked = self._cell.prefill_chunk or default
        return min(asked, cache.longest_pass) if cache.longest_pass is not None else asked

    def _oracle(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Oracle | None:
        """Where acceptance is injected: the oracle that knows the greedy output of this prompt."""
        speculation = self._cell.speculation
        if speculation is None or speculation.acceptance is None or self._draft is None:
            return None

        def record() -> Oracle:
            recorded_T = self._record(prompt_BT, length, recorder).to(self._target.device)
            return draw_oracle(recorded_T, speculation, self._target.vocab_size, self._cell.seed)

        return self._recording.oracle(prompt_BT, length, record)

    def _record(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> torch.Tensor:
        """Greedy output through the verification pass, its proposal always the same: where rounding depends on
        the rows of a pass, the recording is what the verification will say.
        """
        self._execution = None
        run = self._new_run(1, prompt_BT.shape[1], length, speculative=True, drafting=False, oracle=None)
        with recording(recorder) as heard:
            return execute(run, prompt_BT.to(self._target.device), heard).ids_BT[0]
