"""Sliding window with recomputation: each token reads its own window from scratch, at positions 0, 1, 2, ...

The slow control of the StreamingLLM paper (arXiv:2309.17453, figure 1d). It keeps no cache and works with every causal
language model.
T tokens, N windows, C = S + W + 1 tokens a window, V vocabulary.
"""

import torch

from workers.attempt import InEffect, Phase
from workers.cell import Cell
from workers.engines.eager.score import negative_log_likelihood
from workers.engines.session import Generated, ModeUnsupported, Recorder
from workers.engines.shared.scores import Tally
from workers.engines.sizes import RECOMPUTE_TOKENS
from workers.models.load import LoadedModel
from workers.modes import ScoreBucket


class RecomputeSession:
    """Gives scores and logits. It generates nothing."""

    def __init__(self, cell: Cell, target: LoadedModel) -> None:
        context = cell.mode_spec.policy.context(cell.streaming)
        assert context is not None
        self._model = target.model
        self._context = context.sinks + context.window + 1  # tokens of a window

    def in_effect(self) -> InEffect:
        return InEffect(
            cache_class="none",
            attn_implementation=self._model.config.get_text_config(decoder=True)._attn_implementation,
            dtype=str(self._model.dtype).removeprefix("torch."),
            sinks=0,
            window=self._context - 1,
            repetition_penalty=1.0,
        )

    def warm_up(self, prompt_BT: torch.Tensor) -> None:
        self._last_logits(prompt_BT[:1, : self._context].to(self._model.device))

    def generate(self, prompt_BT: torch.Tensor, new_tokens: int, recorder: Recorder) -> Generated:
        raise ModeUnsupported("recompute scores a given text; it generates none")

    def keep(self, prefix_T: torch.Tensor) -> None:
        """Nothing is kept without a cache."""

    @torch.no_grad()
    def score(self, ids_T: torch.Tensor, recorder: Recorder) -> list[ScoreBucket]:
        """Score the first window in one pass. After it, read one window for each token, `RECOMPUTE_TOKENS` tokens a pass."""
        recorder.phase(Phase.PREFILL)
        recorder.count_cache_with(lambda: 0)
        ids_T = ids_T.to(self._model.device)
        tally = Tally()
        head = ids_T[: self._context + 1]
        logits_BTV = self._model(input_ids=head[None, :-1], use_cache=False).logits
        tally.add(list(range(1, len(head))), negative_log_likelihood(logits_BTV[0], head[1:]))
        recorder.phase(Phase.DECODE)
        recorder.tokens(tally.scored)

        positions = range(len(head), len(ids_T))
        at_once = max(1, RECOMPUTE_TOKENS // self._context)
        for first in range(0, len(positions), at_once):
            ends = list(positions[first : first + at_once])
            window_NC = torch.stack([ids_T[end - self._context : end] for end in ends])
            tally.add(ends, negative_log_likelihood(self._last_logits(window_NC), ids_T[ends]))
            recorder.tokens(tally.scored)
        return tally.buckets()

    @torch.no_grad()
    def logits(self, ids_T: torch.Tensor) -> torch.Tensor:
        ids_1T = ids_T[None].to(self._model.device)
        ends = range(1, ids_1T.shape[1] + 1)
        rows = [self._last_logits(ids_1T[:, max(0, end - self._context) : end]) for end in ends]
        return torch.cat(rows).float().cpu()

    def _last_logits(self, window_NC: torch.Tensor) -> torch.Tensor:
        """Return [N, V]: the logits after the last token of each window."""
        last_only = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        return self._model(input_ids=window_NC, use_cache=False, **last_only).logits[:, -1]
