"""Questions of a sweep file, their probes, and what an attempt at one says."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.boundary.question import TAIL, ProbeReading, Question, questions
from orchestrator.boundary.search import Probe
from orchestrator.boundary.start import fit_to_device, predicted, search_for
from orchestrator.predict.device import DeviceProfile
from orchestrator.predict.shape import shape_for
from orchestrator.spec import BoundarySpec, SweepSpec
from tests.orchestrator.boundary.attempts import CPU, attempt_of
from workers.attempt import Phase
from workers.cell import ModelRef
from workers.outcome import Outcome

PHASES = ["decode", "decode_after_prefill", "prefill", "prefill_chunked"]
NAME = "random:pythia-14m"
SHAPE = shape_for(NAME, ModelRef(target=NAME))
PROFILE = DeviceProfile.of(CPU)


def spec(**boundary: object) -> SweepSpec:
    fields = {key: boundary.pop(key) for key in list(boundary) if key not in BoundarySpec.model_fields}
    raw = {
        "name": "t",
        "models": [{"target": NAME, "draft": NAME, "dtype": "float32"}],
        "modes": ["baseline", "streaming"],
        "budgets": ["512MiB"],
        "boundary": boundary,
        **fields,
    }
    return SweepSpec.model_validate(raw)


def only(**boundary: object) -> Question:
    (question,) = questions(spec(modes=["baseline"], **boundary))
    return question


def test_one_question_per_model_mode_engine_budget_batch_prompt_and_phase() -> None:
    found = questions(
        spec(engines=["eager", "graph"], budgets=["1GiB", "device"], batch_sizes=[1, 4], phases=PHASES)
    )
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 4


def test_prefill_has_no_prompt_axis() -> None:
    assert len(questions(spec(prompt_tokens=[16, 64], phases=["decode", "prefill"], modes=["baseline"]))) == 3


def test_modes_read_only_their_own_fields() -> None:
    by_mode = {
        question.cell.mode: question.cell
        for question in questions(spec(modes=["baseline", "streaming", "baseline+spec"]))
    }
    assert by_mode["baseline"].streaming is None
    assert by_mode["baseline"].model.draft is None
    assert by_mode["streaming"].streaming is not None
    assert by_mode["streaming"].speculation is None
    assert by_mode["baseline+spec"].model.draft == NAME


def test_no_section_no_questions() -> None:
    raw = {"name": "t", "models": [{"target": NAME}]}
    assert questions(SweepSpec.model_validate(raw)) == []


def test_scoring_modes_have_no_boundary() -> None:
    found = questions(spec(modes=["baseline", "recompute"], workload="score"))
    assert [question.cell.mode for question in found] == ["baseline"]
    assert found[0].cell.workload == "generate"


def test_the_batch_axis_asks_once_per_length_by_single_sequences() -> None:
    found = questions(spec(axis="batch_size", lengths=[100, 200], batch_sizes=[1, 2], modes=["baseline"]))
    assert [question.cell.length for question in found] == [100, 200]
    assert {question.resolution for question in found} == {1}
    assert found[1].probe(17, 0).batch_size == 17
    assert found[1].probe(17, 0).length == 200


@given(
    value=st.integers(1, 10**6),
    confirmation=st.integers(0, 5),
    phase=st.sampled_from(PHASES),
    reach=st.sampled_from(["decode", "prefill", "synthetic"]),
    axis=st.sampled_from(["length", "batch_size"]),
)
def test_a_probe_is_told_from_its_cell(
    value: int, confirmation: int, phase: str, reach: str, axis: str
) -> None:
    question = only(phases=[phase], reach=reach, axis=axis, lengths=[50], engines=["graph"])
    cell = question.probe(value, confirmation)
    assert cell.purpose == "probe"
    assert question.match(cell) == Probe(value, confirmation)
    assert question.match(dataclasses.replace(cell, seed=99)) is None
    assert question.match(dataclasses.replace(cell, purpose="measure")) is None
    other = only(phases=[phase], reach=reach, axis=axis, lengths=[50], budgets=["1GiB"])
    assert other.match(cell) is None


def test_a_synthetic_probe_is_the_first_of_its_value_and_like_the_others() -> None:
    """The eager engine's caches depend on how they grew: no noise there, but the prediction to the token, then real runs."""
    graph = only(reach="synthetic", engines=["graph"])
    first, second = graph.probe(5000, 0), graph.probe(5000, 1)
    assert (first.synthetic, second.synthetic) == (True, False)
    assert dataclasses.replace(first, synthetic=False, repeat=1) == second
    assert second == only(reach="prefill", engines=["graph"]).probe(5000, 1)
    assert search_for(graph, 5000).scouts
    for phase in ("prefill", "prefill_chunked"):
        assert not only(reach="synthetic", engines=["graph"], phases=[phase]).probe(5000, 0).synthetic
    eager = only(reach="synthetic")
    assert not eager.probe(5000, 0).synthetic
    search = search_for(eager, 5000)
    assert not search.scouts
    for passed in (True, False, True):  # the floor, then the two ends that the prediction names
        (probe,) = search.next_probes(1)
        search.observe(probe, passed)
    assert (search.bracket.last_ok, search.bracket.first_oom) == (4992, 5056)


def test_what_each_phase_asks() -> None:
    decode = only(prompt_tokens=[64]).probe(1000, 0)
    assert (decode.prompt_tokens, decode.length, decode.prefill_chunk) == (64, 1000, None)
    whole = only(phases=["prefill"]).probe(1000, 0)
    assert (whole.prompt_tokens, whole.length, whole.prefill_chunk) == (1000, 1, None)
    chunked = only(phases=["prefill_chunked"], prefill_chunk=128).probe(1000, 0)
    assert (chunked.prompt_tokens, chunked.length, chunked.prefill_chunk) == (1000, 1, 128)
    by_prompt = only(prompt_tokens=[64], reach="prefill", prefill_chunk=128).probe(1000, 0)
    assert (by_prompt.prompt_tokens, by_prompt.length) == (64 + 1000 - TAIL, TAIL)
    assert by_prompt.prefill_chunk == 128


def test_a_run_says_how_far_it_came() -> None:
    question = only()
    cell = question.probe(1000, 0)
    passed = question.read(attempt_of(cell, Outcome.OK))
    failed = question.read(attempt_of(cell, Outcome.OOM_DECODE, index=700))
    assert passed is not None
    assert passed.passed
    assert failed is not None
    assert (failed.passed, failed.passed_up_to) == (False, 700)
    prefill = attempt_of(cell, Outcome.OOM_PREFILL)
    load = dataclasses.replace(attempt_of(cell, Outcome.OOM_LOAD), phase=Phase.LOAD)
    foretold = dataclasses.replace(load, phase=Phase.SPAWN)
    for attempt in (prefill, load, foretold):
        nothing = question.read(attempt)
        assert nothing is not None
        assert (nothing.passed, nothing.passed_up_to) == (False, 0)
    # What is prepared after the weights may be larger for a longer run.
    preparing = question.read(dataclasses.replace(load, phase=Phase.PREPARE))
    assert preparing is not None
    assert (preparing.passed, preparing.passed_up_to) == (False, None)


@pytest.mark.parametrize("outcome", [Outcome.HANG, Outcome.INFRA_ERROR, Outcome.CRASHED, Outcome.OOM_HOST])
def test_what_is_not_about_device_memory_says_nothing(outcome: Outcome) -> None:
    question = only()
    assert question.read(attempt_of(question.probe(10, 0), outcome)) is None


def test_a_chunked_prompt_counts_what_lies_in_its_cache() -> None:
    per_token = SHAPE.kv_bytes_per_token("float32")
    for phase, reach, before, after in (("prefill_chunked", "decode", 0, 0), ("decode", "prefill", 64, TAIL)):
        asked = only(phases=[phase], reach=reach, prompt_tokens=[64], prefill_chunk=256)
        question = fit_to_device(asked, SHAPE, None, PROFILE)
        cell = question.probe(2000, 0)
        # (tokens held, those of the chunks that passed, the end of the chunk that failed or may have failed)
        for held, passed, failed in ((900, 768, 1024), (1024, 768, 1280), (10, 0, 256)):
            kv_bytes = held * per_token + per_token // 2
            told = question.read(attempt_of(cell, Outcome.OOM_PREFILL, kv_cache_bytes=kv_bytes))
            assert told is not None
            assert told.passed_up_to == max(passed - before, 0)
            assert told.fails_from == failed - before + after
        # The run's own count names the chunk, whatever the cache holds: 768 tokens passed, 1,024 did not.
        told = question.read(
            attempt_of(cell, Outcome.OOM_PREFILL, kv_cache_bytes=10 * per_token, oom_prompt_tokens=768)
        )
        assert told == ProbeReading(passed=False, passed_up_to=768 - before, fails_from=1025 - before + after)
        # All chunks passed: what came behind them did not.
        last = cell.prompt_tokens - 1
        told = question.read(attempt_of(cell, Outcome.OOM_PREFILL, oom_prompt_tokens=last))
        assert told == ProbeReading(passed=False)
    whole = fit_to_device(only(phases=["prefill"]), SHAPE, None, PROFILE)
    told = whole.read(attempt_of(whole.probe(2000, 0), Outcome.OOM_PREFILL, kv_cache_bytes=900 * per_token))
    assert told is not None
    assert told.passed_up_to is None


def test_the_long_prompt_is_a_power_of_two_within_half_of_the_boundary() -> None:
    short = predicted(fit_to_device(only(), SHAPE, None, PROFILE), SHAPE, None, PROFILE)
    assert short is not None
    question = fit_to_device(only(phases=["decode_after_prefill"], max_length=10**6), SHAPE, None, PROFILE)
    prompt = question.cell.prompt_tokens
    assert prompt <= short / 2 < 2 * prompt
    assert prompt & (prompt - 1) == 0
    after = predicted(question, SHAPE, None, PROFILE)
    assert after == pytest.approx(short - prompt, rel=0.02)


def test_learned_positions_end_the_search() -> None:
    learned = dataclasses.replace(SHAPE, learned_positions=True, max_positions=2048)
    assert fit_to_device(only(prompt_tokens=[64]), learned, None, PROFILE).max_value == 1984
    assert fit_to_device(only(phases=["prefill"]), learned, None, PROFILE).max_value == 2048
    assert fit_to_device(only(), SHAPE, None, PROFILE).max_value == 131_072


def test_a_search_starts_low_and_knows_constant_memory() -> None:
    question = only(resolution=32)
    search = search_for(question, 8_000)
    assert search.next_probes(1) == [Probe(480, 0)]
    streaming = questions(spec(modes=["streaming"]))[0]
    assert predicted(streaming, SHAPE, None, PROFILE) is None
    assert search_for(streaming, None).floor == 64
