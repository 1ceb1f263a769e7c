"""Greedy decoding, with and without a draft: lossless, forced in length, measured, constant in memory."""

import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from tests.workers.engines.graph.tiny import EOS, build, cell, tokens
from tests.workers.engines.heard import Heard
from workers.attempt import Phase
from workers.engines.graph import open_session
from workers.engines.graph.clock import HostClock
from workers.modes import Speculation


def by_hand(model, prompt_1T: torch.Tensor, length: int, penalty: float) -> tuple[list[int], int | None]:
    """Greedy with transformers' own forward and penalty, the whole sequence again for every token."""
    ids_1T, eos_at = prompt_1T, None
    for index in range(length):
        with torch.no_grad():
            scores = model(ids_1T).logits[:, -1]
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids_1T, scores)
        if eos_at is None and int(scores.argmax()) == EOS:
            eos_at = index
        scores[:, EOS] = -torch.inf
        ids_1T = torch.cat([ids_1T, scores.argmax(-1, keepdim=True)], 1)
    return ids_1T[0, prompt_1T.shape[1] :].tolist(), eos_at


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_plain_is_greedy(family: str, penalty: float) -> None:
    target, prompt_1T = build(family, torch.float64), tokens(9)
    expected, eos_at = by_hand(target.model, prompt_1T, 80, penalty)
    generated = open_session(cell("baseline", repetition_penalty=penalty), target, None).generate(
        prompt_1T, 80, Heard()
    )
    assert generated.ids_BT[0].tolist() == expected
    assert generated.eos_at == eos_at


def test_eos_is_noted_and_not_taken() -> None:
    """Every id is an end of text once: suppressed, and noted where the free run would have chosen it."""
    target, prompt_1T = build("neox", torch.float64), tokens(9)
    free = by_hand(target.model, prompt_1T, 12, 1.0)[0]
    for eos in set(free):
        object.__setattr__(target, "eos_ids", frozenset({eos}))
        for mode, draft in (("streaming", None), ("streaming+spec", target)):
            generated = open_session(cell(mode, window=40), target, draft).generate(prompt_1T, 12, Heard())
            assert eos not in generated.ids_BT
            assert generated.ids_BT.shape == (1, 12)
            if EOS not in free:
                assert generated.eos_at == free.index(eos)


@pytest.mark.parametrize(
    ("family", "policy", "penalty"),
    [("neox", "baseline", 1.2), ("neox", "streaming", 1.0), ("llama", "baseline", 1.0), ("llama", "streaming", 1.2)],
)  # fmt: skip
def test_speculative_equals_plain(family: str, policy: str, penalty: float) -> None:
    """Drafts that agree never, sometimes (the target with noise) and always; gamma 1 .. 8; beyond the ring."""
    target, prompt_1T = build(family, torch.float32, layers=2), tokens(9)
    noisy = build(family, torch.float32, layers=2)
    for parameter in noisy.model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    stranger = build(family, torch.float32, layers=1, seed=5)
    plain = open_session(cell(policy, window=8, repetition_penalty=penalty), target, None)
    expected_BT = plain.generate(prompt_1T, 60, Heard()).ids_BT
    accepted = []
    for gamma, draft in ((1, noisy), (3, noisy), (8, noisy), (5, stranger), (2, target), (4, target)):
        asked = cell(
            f"{policy}+spec", window=8, repetition_penalty=penalty, speculation=Speculation(gamma=gamma)
        )
        generated = open_session(asked, target, draft).generate(prompt_1T, 60, Heard())
        assert torch.equal(generated.ids_BT, expected_BT), f"gamma {gamma}"
        assert generated.drafted == generated.rounds * gamma
        accepted.append(generated.accepted / generated.drafted)
    assert accepted[3] < 0.5
    assert accepted[4] > 0.95
    assert accepted[5] > 0.95
    assert 0.05 < accepted[1] < 0.99


@pytest.mark.parametrize("policy", ["baseline", "streaming"])
def test_injected_acceptance_is_lossless_and_as_asked(policy: str) -> None:
    target, draft = build("neox", torch.float32, layers=1), build("neox", torch.float32, layers=1, seed=1)
    prompt_1T = tokens(9)
    expected_BT = open_session(cell(policy), target, None).generate(prompt_1T, 120, Heard()).ids_BT
    per_round = []
    for acceptance in (0.0, 0.5, 1.0, (1.0, 1.0, 0.0, 1.0)):
        asked = cell(f"{policy}+spec", speculation=Speculation(gamma=4, acceptance=acceptance))
        generated = open_session(asked, target, draft).generate(prompt_1T, 120, Heard())
        assert torch.equal(generated.ids_BT, expected_BT)
        per_round.append(119 / generated.rounds)
    assert per_round[0] == 1.0
    assert per_round[1] == pytest.approx(sum(0.5**k for k in range(5)), rel=0.25)
    assert per_round[2] == pytest.approx(5.0, rel=0.03)
    assert per_round[3] == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_a_batch_is_its_rows(mode: str) -> None:
    target, prompt_BT = build("llama", torch.float64), tokens(9, batch=3)
    asked = cell(mode, batch_size=3, repetition_penalty=1.3)
    together_BT = open_session(asked, target, None).generate(prompt_BT, 40, Heard()).ids_BT
    for row in range(3):
        alone = open_session(cell(mode, repetition_penalty=1.3), target, None)
        assert torch.equal(alone.generate(prompt_BT[row : row + 1], 40, Heard()).ids_BT[0], together_BT[row])


@pytest.mark.parametrize("mode", ["baseline", "streaming", "baseline+spec", "streaming+spec"])
def test_what_is_reported(mode: str) -> None:
    target = build("neox", torch.float32)
    session, heard = open_session(cell(mode), target, target if "+" in mode else None), Heard()
    session.warm_up(tokens(9))
    generated = session.generate(tokens(9), 60, heard)
    assert heard.phases == [Phase.PREFILL, Phase.DECODE]
    assert heard.counts[-1] == 60
    assert len(heard.times_s) == 60
    assert heard.times_s == sorted(heard.times_s)
    assert generated.ids_BT.shape == (1, 60)
    effect = session.in_effect()
    assert effect.dtype == "float32"
    assert (effect.sinks, effect.window) == ((4, 12) if "streaming" in mode else (None, None))
    assert effect.gamma == (4 if "+" in mode else None)
    assert (generated.verify_step_s is not None) == ("+" in mode)


def test_streaming_memory_is_constant_and_full_grows_by_blocks() -> None:
    target, sizes = build("neox", torch.float32, layers=1), {}
    for mode in ("streaming", "baseline"):
        for length in (10, 300):
            heard = Heard()
            open_session(cell(mode), target, None).generate(tokens(9), length, heard)
            sizes[mode, length] = heard.kv_bytes[-1]
    assert sizes["streaming", 10] == sizes["streaming", 300] > 0
    block = 1 * 2 * 4 * 64 * 12 * 4
    assert sizes["baseline", 10] == block
    assert sizes["baseline", 300] == -(-308 // 64) * block


class LateClock(HostClock):
    """A device that is always behind: a counter comes to the host with the first mark that was made after its fetch."""

    def __init__(self) -> None:
        self._marks = 0
        self._on_their_way: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def mark(self) -> int:
        self._marks += 1
        return self._marks

    def fetch(self, counter: torch.Tensor) -> torch.Tensor:
        host = torch.tensor(10**6)
        self._on_their_way.append((self._marks, host, counter.clone()))
        return host

    def wait(self, mark: int) -> None:
        for made, host, value in self._on_their_way:
            if made < mark:
                host.copy_(value)

    def seconds(self, earlier: int, later: int) -> float:
        return 1e-3 * (later - earlier)


@pytest.mark.parametrize("mode", ["baseline", "baseline+spec"])
def test_a_count_is_read_only_once_it_has_arrived(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count from elsewhere ends a run early, or leaves it without the blocks that it writes next."""
    target, draft = build("neox", torch.float64), build("neox", torch.float64, layers=1, seed=1)
    needed = draft if mode.endswith("+spec") else None
    expected = open_session(cell(mode), target, needed).generate(tokens(9), 150, Heard()).ids_BT
    monkeypatch.setattr("workers.engines.graph.execution.clock_of", lambda device: LateClock())
    assert torch.equal(
        open_session(cell(mode), target, needed).generate(tokens(9), 150, Heard()).ids_BT, expected
    )
