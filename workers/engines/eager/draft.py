"""Candidate generators for transformers' assisted decoding: gamma tokens a round, a cache of our own, counters, an oracle.

transformers drafts 20 tokens by default, stops at a confidence of 0.4 (which the host reads for each token) and adapts both
from call to call. A measurement needs gamma tokens in every round. So adapting is off; the rest is transformers' own code.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import AssistedCandidateGenerator, CandidateGenerator

from workers.engines.eager.forced import NoteEos
from workers.engines.shared.oracle import Oracle

#: What of all that `generate` hands over when it asks for a candidate generator is of use.
_ASKED = (
    "input_ids",
    "assistant_model",
    "generation_config",
    "model_kwargs",
    "inputs_tensor",
    "logits_processor",
)
Asked = dict[str, Any]


@dataclass(slots=True)
class Rounds:
    """Counts on the host, from shapes. `rounds`: forwards of the target."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    def figures(self) -> dict[str, Any]:
        """Return them as fields of `Generated`. transformers' pass over the prompt verifies a draft too."""
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "prompt_is_a_round": True,
        }


class Draft(AssistedCandidateGenerator):
    """Runs transformers' draft loop at a fixed gamma. An oracle replaces the tokens drafted; the draft model runs all the same."""

    def __init__(self, asked: Asked, gamma: int, cache: Cache, rounds: Rounds, oracle: Oracle | None) -> None:
        super().__init__(**asked)
        self._rounds = rounds
        self._oracle = oracle
        self._prompt_tokens: int = asked["input_ids"].shape[1]
        self.num_assistant_tokens = gamma
        self.assistant_generation_config.num_assistant_tokens_schedule = "constant"
        self.assistant_generation_config.assistant_confidence_threshold = 0.0
        self.generation_config.assistant_confidence_threshold = 0.0
        # The draft's logits say nothing about where the target would have ended the text.
        self.logits_processor = [p for p in asked["logits_processor"] if not isinstance(p, NoteEos)]
        cache.activate_past_recording()
        self.assistant_kwargs["past_key_values"] = cache

    def get_candidates(
        self, input_ids: torch.Tensor, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        candidate_ids, scores = super().get_candidates(input_ids)
        seen = input_ids.shape[1]
        count = candidate_ids.shape[1] - seen
        self._rounds.drafted += count
        if self._oracle is not None and count:
            proposed = self._oracle.propose(seen - self._prompt_tokens)[:count]
            candidate_ids = torch.cat([input_ids, proposed[None]], 1)
        return candidate_ids, scores

    def update_candidate_strategy(
        self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int
    ) -> None:
        self._rounds.rounds += 1
        self._rounds.accepted += int(num_matches)


class Blind(CandidateGenerator):
    """Proposes token 0 in every place, without a draft model. An oracle's recording is made with it.

    A plain run would record what one-row kernels say; in bf16 the verification's gamma + 1 rows may say otherwise
    at a near-tie, and the recording would be worth nothing from there on.
    """

    def __init__(self, asked: Asked, gamma: int) -> None:
        self._gamma = gamma
        self._max_length: int = asked["generation_config"].max_length

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, None]:
        count = min(self._gamma, self._max_length - input_ids.shape[1] - 1)
        return torch.cat([input_ids, input_ids.new_zeros(1, count)], 1), None

    def update_candidate_strategy(
        self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int
    ) -> None:
        pass


@contextmanager
def drafting(target: PreTrainedModel, generator: Callable[[Asked], CandidateGenerator]) -> Iterator[None]:
    """Within the context, the assisted decoding of `target.generate` asks `generator` for its candidates."""
    prepare = target.prepare_inputs_for_generation

    def candidate_generator(**kwargs: object) -> CandidateGenerator:
        return generator({name: kwargs[name] for name in _ASKED})

    def unseen_only(input_ids: torch.Tensor, past_key_values: Cache, **kwargs: object) -> dict[str, object]:
        # Assisted decoding feeds the whole prompt in its first round, whatever the cache has read by then.
        kwargs["next_sequence_length"] = input_ids.shape[1] - past_key_values.get_seq_length()
        inputs: dict[str, object] = prepare(input_ids, past_key_values=past_key_values, **kwargs)
        return inputs

    target._get_candidate_generator = candidate_generator
    target.prepare_inputs_for_generation = unseen_only
    try:
        yield
    finally:
        del target._get_candidate_generator, target.prepare_inputs_for_generation
