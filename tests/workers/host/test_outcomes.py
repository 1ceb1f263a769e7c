"""Every outcome that a CPU can produce, from real processes; after each the next cell is ok."""

import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.host.cells import MiB, gpt_neox, lease
from workers.attempt import Attempt, Phase
from workers.host.device_host import DeviceHost
from workers.modes import Speculation, Streaming
from workers.outcome import Outcome

PY_SPY = Path(sys.executable).with_name("py-spy")


def assert_ok(host: DeviceHost, model: str) -> None:
    attempt = host.run(lease(model, fault="none"))
    assert (attempt.outcome, attempt.phase) == (Outcome.OK, Phase.DONE)
    assert attempt.device_dirty is None


def failure_of(attempt: Attempt):
    assert attempt.failure is not None
    return attempt.failure


class TestEagerEngine:
    """Real models through the whole child."""

    def test_ok(self, host, model):
        attempt = host.run(lease(model, length=24, batch_size=2))
        assert attempt.outcome is Outcome.OK
        assert attempt.failure is None
        measured = attempt.measured
        assert measured.new_tokens == len(attempt.output_ids) == 24
        assert measured.weights_bytes > 8 * MiB
        assert measured.step_weights_bytes == measured.weights_bytes - 8192 * 128 * 4  # a row of its table
        assert 0.0 < measured.roofline_fraction < 1.5
        assert measured.kv_cache_bytes == 2 * 31 * 2048  # the last new token is never read
        assert measured.ttft_s > 0
        assert measured.tokens_per_s > 0
        assert measured.tpot_p50_s <= measured.tpot_p95_s <= measured.tpot_p99_s
        assert measured.in_effect.cache_class == "DynamicCache"
        assert len(measured.output_sha256) == len(measured.prompt_sha256) == 64
        assert [step.token_index for step in attempt.steps] == list(range(24))
        assert attempt.steps[-1].t_s <= attempt.duration_s
        assert measured.load_s < attempt.first_model_call_s < attempt.duration_s
        assert attempt.peak_device_bytes >= measured.weights_bytes + measured.kv_cache_bytes
        assert attempt.context_bytes is not None
        assert measured.copy_bandwidth_after_bytes_per_s > 0
        assert measured.matmul_flops_per_s > 0
        assert measured.matmul_after_flops_per_s > 0
        assert attempt.machine.host_cores == os.cpu_count()
        assert max(s.device_used_bytes for s in attempt.samples) <= attempt.peak_device_bytes
        assert len(pickle.dumps(attempt)) < 100_000

    def test_score(self, host, model):
        attempt = host.run(lease(model, workload="score", prompt_tokens=0, length=40))
        assert attempt.outcome is Outcome.OK
        assert sum(score.num_tokens for score in attempt.results) == 40

    def test_same_cell_same_output(self, host, model):
        first, second = (host.run(lease(model, length=12, repeat=r)) for r in (0, 1))
        assert first.measured.output_sha256 == second.measured.output_sha256

    def test_oom_load(self, host, model):
        attempt = host.run(lease(model, budget=9 * MiB))  # 7 of them room for small objects
        assert (attempt.outcome, attempt.phase) == (Outcome.OOM_LOAD, Phase.LOAD)
        failure = failure_of(attempt)
        assert failure.oom_requested_bytes == 8192 * 128 * 4
        assert failure.oom_free_bytes < failure.oom_requested_bytes
        assert failure.oom_token_index is None

    @pytest.mark.parametrize("purpose", ["probe", "measure"])
    def test_oom_prefill(self, host, model, purpose):
        # 9 MiB of weights, 12 MiB of cache, and a few times 3 MiB of activations.
        attempt = host.run(lease(model, budget=24 * MiB, prompt_tokens=6000, purpose=purpose))
        assert (attempt.outcome, attempt.phase) == (Outcome.OOM_PREFILL, Phase.PREFILL)
        assert attempt.peak_device_bytes <= 24 * MiB

    def test_oom_in_a_prompt_in_chunks_tells_what_was_read(self, host, model):
        """A prompt of less passes; one that ends with the chunk that failed fails there too."""

        def ended(prompt_tokens):
            return host.run(
                lease(model, budget=24 * MiB, prompt_tokens=prompt_tokens, prefill_chunk=256, length=1)
            )

        attempt = ended(8000)
        assert (attempt.outcome, attempt.phase) == (Outcome.OOM_PREFILL, Phase.PREFILL)
        read = failure_of(attempt).oom_prompt_tokens
        assert read > 1000
        assert read % 256 == 0
        assert ended(read - 255).outcome is Outcome.OK
        assert failure_of(ended(read + 257)).oom_prompt_tokens == read

    def test_oom_decode(self, host, model):
        # 9 MiB of weights, 2 KiB of cache per token and sequence: 32 sequences fill 19 MiB before token 300.
        attempt = host.run(lease(model, budget=32 * MiB, length=1000, batch_size=32, purpose="probe"))
        assert (attempt.outcome, attempt.phase) == (Outcome.OOM_DECODE, Phase.DECODE)
        failure = failure_of(attempt)
        assert 64 < failure.oom_token_index == attempt.measured.new_tokens < 300
        assert failure.oom_requested_bytes >= failure.oom_free_bytes
        assert 20 * MiB < failure.oom_allocated_bytes <= 32 * MiB
        assert attempt.steps[-1].kv_cache_bytes > 2 * MiB
        assert_ok(host, model)

    def test_memory_ends_where_it_does_however_much_was_asked_for(self, host, model):
        """A time for each token asked for, 24 bytes of it, is the cell's own account of itself."""
        ends = []
        for length in (10_000, 120_000):
            given = lease(model, budget=32 * MiB, length=length, batch_size=32, purpose="probe")
            ends.append(failure_of(host.run(given)).oom_token_index)
        assert ends[0] == ends[1]

    @pytest.mark.parametrize("purpose", ["probe", "measure"])
    def test_oom_while_an_oracle_is_recorded_is_the_runs_own(self, host, model, tmp_path, purpose):
        # 51 MiB of weights, 8 KiB of cache per token.
        given = lease(
            gpt_neox(tmp_path, hidden_size=512),
            mode="baseline+spec",
            speculation=Speculation(gamma=4, acceptance=0.8),
            budget=62 * MiB,
            length=2000,
            purpose=purpose,
        )
        cell = replace(given.cell, model=replace(given.cell.model, draft=model))
        attempt = host.run(replace(given, cell=cell))
        assert (attempt.outcome, attempt.phase) == (Outcome.OOM_DECODE, Phase.DECODE)
        failure = failure_of(attempt)
        assert failure.oom_token_index == attempt.measured.new_tokens > 64
        assert attempt.measured.kv_cache_bytes >= 8192 * failure.oom_token_index

    def test_context_limit_of_learned_positions(self, host, learned_positions):
        attempt = host.run(lease(learned_positions, prompt_tokens=8, length=58))
        assert attempt.outcome is Outcome.CONTEXT_LIMIT
        assert "64" in failure_of(attempt).error_message
        # The last new token is never read: 64 positions are enough for 8 + 57.
        assert host.run(lease(learned_positions, prompt_tokens=8, length=57)).outcome is Outcome.OK

    def test_rope_runs_beyond_its_context(self, host, model):
        attempt = host.run(lease(model, prompt_tokens=120, length=16))
        assert attempt.outcome is Outcome.OK
        assert attempt.measured.max_positions == 128

    def test_a_model_that_is_not_here_is_named(self, host, nowhere, model):
        attempt = host.run(lease(nowhere))
        assert attempt.outcome is Outcome.UNAVAILABLE  # on this node
        assert nowhere in failure_of(attempt).error_message
        assert_ok(host, model)

    def test_settings_of_a_cards_allocator_are_refused_on_a_cpu(self, host, model):
        attempt = host.run(lease(model, allocator="expandable"))
        assert attempt.outcome is Outcome.LOAD_ERROR
        assert "this device is a CPU: leave it out" in failure_of(attempt).error_message

    def test_corpus_too_short(self, host, model):
        attempt = host.run(lease(model, prompt_tokens=10**7))
        assert attempt.outcome is Outcome.LOAD_ERROR
        assert "tokens" in failure_of(attempt).error_message


class TestFaults:
    """An engine that misbehaves. Each case is followed by a cell that is ok."""

    @pytest.mark.parametrize("phase", ["load", "prepare", "prefill", "decode"])
    def test_segfault_in_each_phase(self, host, model, phase):
        attempt = host.run(lease(model, fault=f"segfault@{phase}"))
        assert (attempt.outcome, attempt.phase) == (Outcome.CRASHED, Phase(phase))
        assert failure_of(attempt).signal == signal.SIGSEGV
        assert "Segmentation fault" in failure_of(attempt).last_output  # faulthandler's stack
        assert_ok(host, model)

    @pytest.mark.parametrize("phase", ["load", "prefill"])
    def test_killed_before_the_first_token(self, host, model, phase):
        attempt = host.run(lease(model, fault=f"kill@{phase}"))
        assert (attempt.outcome, attempt.phase) == (Outcome.CRASHED, Phase(phase))
        assert failure_of(attempt).signal == signal.SIGKILL

    @pytest.mark.parametrize(("fault", "number"), [("abort", signal.SIGABRT), ("kill", signal.SIGKILL)])
    def test_killed_by_a_signal(self, host, model, fault, number):
        attempt = host.run(lease(model, fault=f"{fault}@decode"))
        assert attempt.outcome is Outcome.CRASHED
        assert failure_of(attempt).signal == number
        assert attempt.measured.new_tokens == 1
        assert len(attempt.samples) > 0
        assert_ok(host, model)

    @pytest.mark.parametrize(("fault", "code"), [("exit", 3), ("sys-exit", 1)])
    def test_exit_without_a_result(self, host, model, fault, code):
        attempt = host.run(lease(model, fault=f"{fault}@decode"))
        assert attempt.outcome is Outcome.CRASHED
        assert (failure_of(attempt).signal, failure_of(attempt).exit_code) == (None, code)

    @pytest.mark.parametrize("phase", ["load", "decode"])
    def test_hang_of_a_stopped_process(self, host, model, phase):
        attempt = host.run(lease(model, fault=f"stop@{phase}", stall_timeout_s=2.5))
        assert (attempt.outcome, attempt.phase) == (Outcome.HANG, Phase(phase))
        assert "process state T" in failure_of(attempt).stack_dump
        assert_ok(host, model)

    @pytest.mark.skipif(not PY_SPY.exists(), reason="needs py-spy")
    def test_a_process_that_cannot_answer_shows_its_stack_all_the_same(self, host, model):
        attempt = host.run(lease(model, fault="stop@decode", stall_timeout_s=2.5))
        assert attempt.outcome is Outcome.HANG
        assert "misbehave (" in failure_of(attempt).stack_dump

    @pytest.mark.parametrize("fault", ["spin", "spin_in_c"])
    def test_hang_of_an_endless_loop_shows_its_stack(self, host, model, fault):
        attempt = host.run(lease(model, fault=f"{fault.replace('_', '-')}@decode", stall_timeout_s=2.5))
        assert attempt.outcome is Outcome.HANG
        assert f"in {fault}" in failure_of(attempt).stack_dump
        assert_ok(host, model)

    def test_timeout(self, host, model):
        attempt = host.run(lease(model, fault="none", length=10**6, time_limit_s=4))
        assert attempt.outcome is Outcome.TIMEOUT
        assert attempt.measured.new_tokens > 0
        assert "in generate" in failure_of(attempt).stack_dump
        assert_ok(host, model)

    def test_length_short(self, host, model):
        attempt = host.run(lease(model, fault="short", length=10))
        assert attempt.outcome is Outcome.LENGTH_SHORT
        assert attempt.measured.new_tokens == 9

    def test_flood_of_output_is_drained_and_its_end_kept(self, host, model):
        attempt = host.run(lease(model, fault="flood@prefill"))
        assert attempt.outcome is Outcome.OK
        attempt = host.run(lease(model, fault="flood@decode", length=10**6, time_limit_s=6))
        last_output = failure_of(attempt).last_output
        assert len(last_output) <= 16 * 1024
        assert "the last line" in last_output

    def test_exception_that_does_not_pickle(self, host, model):
        attempt = host.run(lease(model, fault="unspeakable@decode"))
        assert attempt.outcome is Outcome.CRASHED
        assert failure_of(attempt).error_type == "Unspeakable"
        assert_ok(host, model)

    def test_bug_in_python_is_a_crash_with_its_traceback(self, host, model):
        attempt = host.run(lease(model, fault="bug@decode"))
        assert attempt.outcome is Outcome.CRASHED
        assert "shape mismatch" in failure_of(attempt).error_message
        assert "Traceback" in failure_of(attempt).last_output

    def test_poisoned_cuda_context(self, host, model):
        attempt = host.run(lease(model, fault="illegal-access@decode"))
        assert attempt.outcome is Outcome.GPU_FAULT

    def test_babble_on_the_event_pipe_is_not_believed(self, host, model):
        attempt = host.run(lease(model, fault="babble@decode", length=5))
        assert attempt.outcome is Outcome.OK
        assert attempt.measured.new_tokens == 5
        assert_ok(host, model)

    @pytest.mark.parametrize("phase", ["open", "prefill", "decode"])
    def test_oom_in_each_phase(self, host, model, phase):
        attempt = host.run(lease(model, fault=f"too-much@{phase}", budget=64 * MiB))
        expected = {
            "open": Outcome.OOM_LOAD,
            "prefill": Outcome.OOM_PREFILL,
            "decode": Outcome.OOM_DECODE,
        }
        assert attempt.outcome is expected[phase]
        assert failure_of(attempt).oom_requested_bytes == MiB
        assert_ok(host, model)

    def test_oom_in_the_warm_up_is_left_to_the_run(self, host, model):
        attempt = host.run(lease(model, fault="too-much@prepare", length=5, budget=64 * MiB))
        assert attempt.outcome is Outcome.OK

    def test_what_is_in_effect_must_be_what_was_asked(self, host, model):
        attempt = host.run(lease(model, fault="other-dtype"))
        assert attempt.outcome is Outcome.LOAD_ERROR
        assert "dtype is float64, float32 was asked for" in failure_of(attempt).error_message


class TestMemory:
    def test_growth_is_what_arithmetic_says(self, host, model):
        """Each token keeps 3 tensors of 1 MiB: to the page and malloc's header, and what small blocks add."""
        small = host.run(lease(model, fault="hold-3", length=20, purpose="probe"))
        large = host.run(lease(model, fault="hold-3", length=50, purpose="probe"))
        grown = large.peak_device_bytes - small.peak_device_bytes
        assert 30 * 3 * MiB <= grown <= 30 * 3 * (MiB + 4096) + MiB
        assert large.steps[-1].kv_cache_bytes == 49 * 3 * MiB

    def test_boundary_is_the_same_to_the_holes_between_small_blocks(self, host, model):
        given = lease(model, budget=32 * MiB, length=1000, batch_size=32, purpose="probe")
        indices = [host.run(given).failure.oom_token_index for _ in range(3)]
        assert (max(indices) - min(indices)) * 32 * 2048 <= 1.5 * MiB

    def test_streaming_peak_is_flat_and_the_baseline_grows(self, host, model):
        def peak(name: str, mode: str, length: int) -> int:
            streaming = Streaming(sinks=4, window=16) if mode == "streaming" else None
            batch_size = 1 if mode == "streaming" else 16
            given = lease(
                name, mode=mode, streaming=streaming, length=length, batch_size=batch_size, purpose="probe"
            )
            return host.run(given).peak_device_bytes

        assert peak("pocket", "streaming", 150) == pytest.approx(peak("pocket", "streaming", 30), rel=0.01)
        assert peak(model, "baseline", 150) - peak(model, "baseline", 30) >= 120 * 16 * 2048 - 2 * MiB

    def test_device_budget_is_the_whole_slot(self, host, model):
        attempt = host.run(lease(model, fault="too-much@decode"))
        assert attempt.outcome is Outcome.OOM_DECODE
        assert attempt.peak_device_bytes > 1000 * MiB
