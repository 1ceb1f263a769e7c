"""The graph engine's session: one cell of one loaded model."""

from typing import TYPE_CHECKING

import torch

from workers.attempt import InEffect, Phase
from workers.cell import Cell
from workers.engines.graph import score
from workers.engines.graph.execution import Execution, StagesOf, execute, readers_of
from workers.engines.graph.families import shard_of
from workers.engines.graph.kept_prefix import PrefixRead, read_prefix
from workers.engines.graph.kernels import PLAIN, kernels_of
from workers.engines.graph.model import CachedModel
from workers.engines.graph.policies import OpenCache
from workers.engines.graph.prefill import new_prefill
from workers.engines.graph.speculate import recording_stages
from workers.engines.graph.state import Rules, new_round, new_state
from workers.engines.graph.weights import Weights
from workers.engines.session import Generated, Recorder, Unmeasured, telling_failures
from workers.engines.shared.oracle import Oracle, Recording, draw_oracle
from workers.engines.shared.prefix import begins_with
from workers.engines.sizes import graph_chunk
from workers.modes import ScoreBucket

if TYPE_CHECKING:
    from workers.models.load import LoadedModel


class GraphSession:
    """Holds at most one run, ready to execute: what `warm_up` prepared, or what `generate` needed."""

    def __init__(
        self,
        cell: Cell,
        target: "LoadedModel",
        draft: "LoadedModel | None",
        open_cache: OpenCache,
        stages_of: StagesOf,
    ) -> None:
        self._cell = cell
        self._open_cache, self._stages_of = open_cache, stages_of
        self._target = shard_of(target)
        self._draft = shard_of(draft) if draft is not None else None
        self._rules = Rules(cell.repetition_penalty, tuple(sorted(target.eos_ids)))
        self._kernels = kernels_of(self._target)
        self._execution: Execution | None = None
        self._recording = Recording()
        self._kept: PrefixRead | None = None

    def in_effect(self) -> InEffect:
        cache = self._execution.target.cache if self._execution else self._reader(self._target, 1, 1).cache
        return InEffect(
            cache_class=type(cache).__name__,
            attn_implementation=f"graph-{self._kernels.name}",
            dtype=str(self._target.dtype).removeprefix("torch."),
            sinks=cache.context.sinks if cache.context else None,
            window=cache.context.window if cache.context else None,
            gamma=self._cell.speculation.gamma if self._cell.speculation else None,
            repetition_penalty=self._rules.penalty,
        )

    @torch.inference_mode()
    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        """Compile, capture, read the prompt once and choose a token. Of a prompt for rings, one chunk: all passes are alike.
        A full cache gives its blocks back."""
        if not self._cell.workload_spec.decodes:
            self.score(prompt_BT[0], Unmeasured())
            return
        run = self._prepared(prompt_BT, self._cell.workload_spec.new_tokens(self._cell), Unmeasured())
        read_BT = prompt_BT if run.target.cache.grows else prompt_BT[:, : run.prefill.chunk]
        run.begin(read_BT.to(self._target.device))
        run.clear()

    @torch.inference_mode()
    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        if self._execution is None:
            recorder.phase(Phase.PREPARE)
        run = self._prepared(prompt_BT, new_tokens, recorder)
        run.clear()  # not afterwards: what the cache held at the end is read then
        kept = self._kept
        if kept is not None and not begins_with(prompt_BT, kept.ids_P):
            kept = None
        return execute(run, prompt_BT.to(self._target.device), recorder, kept)

    @torch.inference_mode()
    def keep(self, prefix_T: torch.Tensor) -> None:
        """Read it into caches of one sequence, the draft's too, which stay until the next prefix."""
        self._kept = None  # its memory first
        if len(prefix_T) == 0:
            return
        models = (self._target,) if self._draft is None else (self._draft, self._target)
        readers = tuple(self._reader(weights, 1, len(prefix_T)) for weights in models)
        chunk = graph_chunk(self._cell, len(prefix_T), grows=readers[-1].cache.grows)
        self._kept = read_prefix(readers, prefix_T, chunk)

    @torch.inference_mode()
    def score(self, ids_T: torch.Tensor, recorder: Recorder) -> list[ScoreBucket]:
        reader = self._reader(self._target, 1, len(ids_T))
        recorder.count_cache_with(reader.cache.nbytes)
        chunk = graph_chunk(self._cell, len(ids_T), grows=reader.cache.grows)
        return score.score(reader, ids_T.to(self._target.device), chunk, recorder)

    @torch.inference_mode()
    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        reader = self._reader(self._target, 1, len(ids_T))
        return score.logits(reader, ids_T.to(self._target.device))

    def _prepared(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Execution:
        """Return an execution of this shape: the one at hand, or a new one."""
        B, T = prompt_BT.shape
        oracle = self._oracle(prompt_BT, length, recorder)
        if self._execution is None or not self._execution.fits(B, T, length, oracle):
            self._execution = None  # its memory first
            self._execution = self._new_execution(B, T, length, self._stages_of, self._draft, oracle)
        return self._execution

    def _new_execution(
        self,
        batch: int,
        prompt_tokens: int,
        length: int,
        stages_of: StagesOf,
        draft_weights: Weights | None,
        oracle: Oracle | None,
    ) -> Execution:
        rows, rules, device = self._cell.rows, self._rules, self._target.device
        furthest = prompt_tokens + length + rows - 1
        target = self._reader(self._target, batch, furthest)
        draft = None if draft_weights is None else self._reader(draft_weights, batch, furthest)
        state = new_state(batch, length, rows, self._target.vocab_size, rules.penalty, device)
        round_ = new_round(rows - 1, oracle, device) if self._cell.mode_spec.decoder.verifies else None
        stages = stages_of(target, draft, state, rules, round_)
        prefill = new_prefill(
            readers_of(target, draft),
            batch,
            prompt_tokens,
            graph_chunk(self._cell, prompt_tokens, grows=target.cache.grows),
            synthetic=self._cell.synthetic,
        )
        run = Execution(target, draft, prefill, state, rules, round_, stages)
        if self._kernels is not PLAIN:
            run.reserve(rows + 1)
            state.head.fill_(1)
            for stage in stages:
                stage.capture()
            run.clear()
        return run

    def _reader(self, weights: Weights, batch: int, most_tokens: int) -> CachedModel:
        cache = self._open_cache(self._cell, weights, batch, most_tokens)
        return CachedModel(weights, cache, self._kernels)

    def _oracle(self, prompt_BT: torch.Tensor, length: int, recorder: Recorder) -> Oracle | None:
        """Return the oracle that knows the greedy output of this prompt, None where no acceptance is injected."""
        speculation = self._cell.speculation
        if speculation is None or speculation.acceptance is None:
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
        run = self._new_execution(1, prompt_BT.shape[1], length, recording_stages, None, None)
        with telling_failures(recorder) as heard:
            return execute(run, prompt_BT.to(self._target.device), heard).ids_BT[0]
