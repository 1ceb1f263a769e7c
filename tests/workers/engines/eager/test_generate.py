"""Generation: forced length, the same tokens with and without a draft, bounded memory, what the recorder hears."""

import pytest
import torch
from transformers import GenerationConfig

from tests.workers.engines.eager.tiny import FAMILIES, SINKS, WINDOW, cell, loaded, noisy, text, tiny
from tests.workers.engines.heard import Heard
from tests.workers.engines.streaming_reference import oracle_logits
from workers.attempt import Phase
from workers.engines.eager import open_session

LENGTH = 60
EOS = 5


def run(model, draft, asked, prompt_BT: torch.Tensor, eos: tuple[int, ...] = ()):
    """(what was generated, what the recorder heard)"""
    heard = Heard()
    drafted = loaded(draft, eos) if asked.speculation else None
    session = open_session(asked, loaded(model, eos), drafted)
    return session.generate(prompt_BT, asked.length, heard), heard


def greedy(logits_of, prompt_T: torch.Tensor, length: int, penalty: float, banned: int | None):
    """Greedy decoding written out: (new tokens, index of the first end of text or None)."""
    ids, ended = prompt_T.tolist(), None
    for index in range(length):
        row = logits_of(torch.tensor(ids))[-1].clone()
        seen = torch.tensor(sorted(set(ids)))
        row[seen] = torch.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
        if banned is not None:
            if int(row.argmax()) == banned and ended is None:
                ended = index
            row[banned] = -torch.inf
        ids.append(int(row.argmax()))
    return ids[len(prompt_T) :], ended


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["baseline", "streaming"])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_speculation_changes_no_token(family: str, policy: str, penalty: float) -> None:
    """Every gamma, both caches, both penalties, end of text suppressed, short prompts and long ones."""
    model = tiny(family)
    draft = noisy(model)
    for prompt, gammas in ((10, (1, 3, 8)), (70, (5,))):
        prompt_BT = text(prompt)[None]
        asked = cell(policy, length=LENGTH, prompt=prompt, penalty=penalty)
        plain, _ = run(model, None, asked, prompt_BT, (EOS,))
        for gamma in gammas:
            asked = cell(f"{policy}+spec", length=LENGTH, prompt=prompt, penalty=penalty, gamma=gamma)
            found, heard = run(model, draft, asked, prompt_BT, (EOS,))
            assert torch.equal(found.ids_BT, plain.ids_BT)
            assert found.eos_at == plain.eos_at
            assert heard.counts[-1] == LENGTH
            assert found.accepted + found.rounds == LENGTH
            assert 0 < found.accepted < found.drafted <= gamma * found.rounds
            assert found.draft_step_s > 0
            assert found.verify_step_s > 0


@pytest.mark.parametrize("policy", ["baseline", "streaming"])
def test_speculation_behind_the_shortest_prompts(policy: str) -> None:
    model = tiny("gpt_neox")
    for prompt in (1, 2):
        prompt_BT = text(prompt)[None]
        plain, _ = run(model, None, cell(policy, length=40, prompt=prompt), prompt_BT)
        asked = cell(f"{policy}+spec", length=40, prompt=prompt, gamma=4)
        assert torch.equal(run(model, noisy(model), asked, prompt_BT)[0].ids_BT, plain.ids_BT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_streaming_generates_what_the_oracle_would(family: str, penalty: float) -> None:
    """Penalty over prompt and new tokens, end of text noted before it is suppressed; prompt longer than the ring."""
    model = tiny(family)
    prompt_T = text(70)
    logits_of = lambda ids_T: oracle_logits(model, ids_T, SINKS, WINDOW)  # noqa: E731
    free, _ = greedy(logits_of, prompt_T, 40, penalty, None)
    banned = free[20]
    tokens, ended = greedy(logits_of, prompt_T, 40, penalty, banned)
    for chunk in (None, 1, 13):
        asked = cell("streaming", prompt=70, length=40, penalty=penalty, chunk=chunk)
        found, _ = run(model, None, asked, prompt_T[None], (banned,))
        assert found.ids_BT[0].tolist() == tokens
        assert found.eos_at == ended
        assert banned not in tokens


def test_baseline_generates_what_a_dense_pass_would() -> None:
    model = tiny("gpt_neox")
    prompt_T = text(20)
    dense = lambda ids_T: model(ids_T[None]).logits[0]  # noqa: E731
    banned = greedy(dense, prompt_T, 30, 1.2, None)[0][10]
    tokens, ended = greedy(dense, prompt_T, 30, 1.2, banned)
    assert ended is not None
    for chunk in (None, 6):
        asked = cell("baseline", prompt=20, length=30, penalty=1.2, chunk=chunk)
        found, _ = run(model, None, asked, prompt_T[None], (banned,))
        assert (found.ids_BT[0].tolist(), found.eos_at) == (tokens, ended)


def test_a_text_that_never_ends_has_no_eos() -> None:
    model = tiny("gpt_neox")
    free, _ = run(model, None, cell("baseline", length=20), text(10)[None])
    unused = next(token for token in range(97) if token not in free.ids_BT)
    found, _ = run(model, None, cell("baseline", length=20), text(10)[None], (unused,))
    assert free.eos_at is None
    assert found.eos_at is None
    assert torch.equal(found.ids_BT, free.ids_BT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["baseline", "streaming"])
def test_a_batch_generates_what_its_rows_would(family: str, policy: str) -> None:
    model = tiny(family)
    prompt_BT = torch.stack([text(40, seed) for seed in (1, 2, 3)])
    asked = cell(policy, prompt=40, length=30, penalty=1.2, batch=3)
    found, heard = run(model, None, asked, prompt_BT, (EOS,))
    rows = [
        run(model, None, cell(policy, prompt=40, length=30, penalty=1.2), p[None], (EOS,))[0]
        for p in prompt_BT
    ]
    assert torch.equal(found.ids_BT, torch.cat([row.ids_BT for row in rows]))
    assert found.eos_at == min((row.eos_at for row in rows if row.eos_at is not None), default=None)
    assert heard.counts == list(range(1, 31))


@pytest.mark.parametrize("mode", ["baseline", "streaming", "baseline+spec", "streaming+spec"])
def test_the_recorder_hears_every_token_once_it_is_known(mode: str) -> None:
    model = tiny("gpt_neox")
    asked = cell(mode, length=40, gamma=3 if mode.endswith("spec") else None)
    found, heard = run(model, noisy(model), asked, text(10)[None])
    assert heard.phases[-2:] == [Phase.PREFILL, Phase.DECODE]
    assert heard.log[heard.log.index(Phase.DECODE) + 1] == heard.counts[0]
    assert heard.counts == sorted(set(heard.counts))
    assert heard.counts[-1] == 40 == found.ids_BT.shape[1]
    assert heard.times_s == []  # this engine times on the host
    if asked.speculation is None:
        assert heard.counts == list(range(1, 41))
    else:
        assert len(heard.counts) == found.rounds
        assert max(b - a for a, b in zip(heard.counts, heard.counts[1:], strict=False)) > 1


def test_streaming_memory_does_not_grow() -> None:
    """Bytes of the caches' tensors: what the ring's size says, at every token; a full cache grows by each."""
    model = tiny("llama", num_hidden_layers=1)
    token = 2 * 2 * 16 * 4  # keys and values, two heads of 16 numbers, float32
    _, heard = run(model, None, cell("streaming", length=1000), text(10)[None])
    assert set(heard.kv_bytes) == {(SINKS + WINDOW + 1 + 8) * token}
    asked = cell("streaming+spec", length=200, gamma=12)
    _, heard = run(model, noisy(model), asked, text(10)[None])
    assert set(heard.kv_bytes) == {2 * (SINKS + WINDOW + 1 + 12) * token}
    heard = Heard()
    open_session(cell("streaming", workload="score"), loaded(model), None).score(text(4097), heard)
    assert set(heard.kv_bytes) == {(SINKS + WINDOW + 1 + 127) * token}
    _, heard = run(model, None, cell("baseline", length=100), text(10)[None])
    assert heard.kv_bytes == [(10 + n) * token for n in range(100)]


def test_a_model_file_that_samples_does_not_make_us_sample() -> None:
    model = tiny("gpt_neox")
    before, _ = run(model, None, cell("baseline", length=20), text(10)[None])
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        repetition_penalty=1.9,
        eos_token_id=int(before.ids_BT[0, 3]),
        max_length=12,
    )
    after, _ = run(model, None, cell("baseline", length=20), text(10)[None])
    assert torch.equal(before.ids_BT, after.ids_BT)
    assert model.generation_config.temperature == 3.0


def test_in_effect_is_read_from_live_objects() -> None:
    model = tiny("gpt_neox")
    asked = cell("streaming+spec", gamma=3, penalty=1.2)
    found = open_session(asked, loaded(model), loaded(noisy(model))).in_effect()
    assert (found.cache_class, found.sinks, found.window) == ("StreamingCache", SINKS, WINDOW)
    assert (found.gamma, found.repetition_penalty, found.dtype) == (3, 1.2, "float32")
    plain = open_session(cell("baseline"), loaded(model), None).in_effect()
    assert (plain.cache_class, plain.attn_implementation, plain.sinks) == ("DynamicCache", "sdpa", None)


@pytest.mark.parametrize("mode", ["baseline+spec", "streaming+spec"])
def test_an_oracle_is_accepted_as_asked_and_changes_no_token(mode: str) -> None:
    model = tiny("gpt_neox", num_hidden_layers=1)
    prompt_BT = text(10)[None]
    plain, _ = run(model, None, cell(mode.removesuffix("+spec"), length=120, penalty=1.2), prompt_BT, (EOS,))
    tokens_per_round = []
    for acceptance in (0.0, 0.6, 1.0, (1.0, 1.0, 0.0, 0.0)):
        asked = cell(mode, length=120, penalty=1.2, gamma=4, acceptance=acceptance)
        found, heard = run(model, noisy(model), asked, prompt_BT, (EOS,))
        assert torch.equal(found.ids_BT, plain.ids_BT)
        assert found.eos_at == plain.eos_at
        assert heard.phases == [Phase.PREPARE, Phase.PREFILL, Phase.DECODE]
        tokens_per_round.append(120 / found.rounds)
    none, some, all_right, two = tokens_per_round
    expected = (1 - 0.6**5) / (1 - 0.6)
    assert (none, all_right, two) == (1.0, 5.0, 3.0)
    assert some == pytest.approx(expected, rel=0.2)


def test_a_warm_up_records_for_the_oracle_once() -> None:
    model = tiny("gpt_neox")
    prompt_BT = text(10)[None]
    asked = cell("streaming+spec", length=30, gamma=4, acceptance=1.0)
    session = open_session(asked, loaded(model), loaded(noisy(model)))
    session.warm_up(prompt_BT)
    forwards = []
    handle = model.register_forward_hook(lambda *args: forwards.append(1))
    found = session.generate(prompt_BT, 30, Heard())
    handle.remove()
    assert found.rounds == 6
    assert len(forwards) == 6 + 1  # the prompt but its last token, then the rounds
