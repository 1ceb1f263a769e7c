import base64
import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.journal.errors import FolderError
from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.plan import expand
from orchestrator.report import render
from orchestrator.spec import BoundarySpec, ModelSpec, SweepSpec
from tests.orchestrator.fake_run import CPU, MiB, attempt_of, demo_attempts, demo_spec
from workers.attempt import Attempt, Device, Failure
from workers.outcome import Outcome


def _run(
    folder: Path,
    spec: SweepSpec,
    attempts: list[Attempt],
    *,
    cells: int = 20,
    end: bool = True,
    device: Device = CPU,
) -> str:
    with open_run(folder, spec) as run:
        run.plan(cells)
        run.devices([device])
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        if end:
            run.finish("finished")
    assert render(folder) == f"{folder}/report.md"
    return (folder / "report.md").read_text()


def test_the_demo_is_answered_first_with_one_picture_below(tmp_path: Path) -> None:
    text = _run(tmp_path, demo_spec(), demo_attempts())
    oom = next(a for a in demo_attempts() if a.outcome is Outcome.OOM_DECODE and a.cell.mode == "baseline")
    assert oom.failure is not None
    at = oom.failure.oom_token_index

    answer = text.split("## ")[1]
    assert answer.startswith("The answer")
    assert (
        f"baseline passes 2,000 tokens and runs out of memory when asked for 4,000, at token {at:,}" in answer
    )
    assert "streaming and streaming+spec passed 8,000 tokens, the longest tried, in constant memory" in answer
    assert "Use **streaming**: " in answer
    assert "; too few runs to tell whether speculation is faster: set “repeats: 3”." in answer
    assert re.findall(r"!\[.*?\]\((.*?)\)", answer) == ["plots/memory-by-tokens-pocket-cpu-64MiB-eager.svg"]
    for title in (
        "Every mode at every length",
        "Speculation",
        "Does memory grow as it should?",
        "What did not end ok",
        "How it was measured",
    ):
        assert f"## {title}" in text
    assert f"oom decode at {at:,}" in text
    assert "allocator: can't allocate memory" in text.lower().replace("defaultcpuallocator", "allocator")
    assert text.startswith("# Where memory ends: demo\n\nfinished: 20 of 20 cells.")


def test_a_report_warns_of_cells_that_ran_with_other_libraries_than_predicted(tmp_path: Path) -> None:
    older = dataclasses.replace(CPU, libraries="torch 2.11.0, transformers 5.17.0")
    warning = "Cells run with torch 2.11.0, transformers 5.17.0, predictions are of torch"
    assert warning in _run(tmp_path / "older", demo_spec(), [], device=older)
    assert warning not in _run(tmp_path / "same", demo_spec(), [])


def test_every_picture_named_is_there_and_the_page_needs_no_network(tmp_path: Path) -> None:
    text = _run(tmp_path, demo_spec(), demo_attempts())
    named = re.findall(r"\]\((plots/.*?\.svg)\)", text)
    assert len(named) >= 4
    for name in named:
        assert (tmp_path / name).read_text().startswith("<svg")
        assert (tmp_path / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= len(named)
    assert "var(--ink)" in page
    # The only addresses in it name XML dialects; nothing is fetched.
    addresses = set(re.findall(r"https?://[^\"' <)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(link|iframe|img|object)\b|@import|url\(", page)
    # The one script is the report's own, which the policy names by its hash; no other runs.
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in page
    )


def test_models_of_one_name_and_of_one_model_two_dtypes_are_told_apart(tmp_path: Path) -> None:
    models = [
        ModelSpec(target="/data/one/hf", dtype="float32"),
        ModelSpec(target="/data/two/hf", dtype="float32"),
        ModelSpec(target="/data/two/hf", dtype="bfloat16"),
    ]
    spec = demo_spec(models=models, modes=["baseline"], lengths=[500, 4000], budgets=[64 * MiB, 80 * MiB])
    text = _run(tmp_path, spec, demo_attempts(spec), cells=12)

    names = ["one/hf", "two/hf (bfloat16)", "two/hf (float32)"]
    answer = text.split("## ")[1]
    for name in names:
        assert f"**{name} on cpu, 64 MiB**: " in answer
        assert f"Which card holds how much: {name} on cpu, new tokens" in answer
        assert text.count(f"{name} on cpu, 80 MiB") > 3, "in every table and picture"
    assert "**hf on" not in text
    pictures = re.findall(r"\]\((plots/.*?\.svg)\)", text)
    assert len(pictures) == len(set(pictures)) == len(list((tmp_path / "plots").glob("*.svg")))
    by_length = [name for name in pictures if "speed-by-length" in name]
    assert len(by_length) == 6


def test_names_that_differ_in_what_no_file_name_holds_have_files_of_their_own(tmp_path: Path) -> None:
    models = [ModelSpec(target=target, dtype="float32") for target in ("/x/a b", "/x/a:b", "/x/A-B")]
    spec = demo_spec(models=models, modes=["baseline"], lengths=[500])
    text = _run(tmp_path, spec, demo_attempts(spec), cells=3)
    pictures = [name for name in re.findall(r"\]\((plots/.*?\.svg)\)", text) if "speed-by-length" in name]
    assert len({name.lower() for name in pictures}) == 3
    drawn = [(tmp_path / name).read_text() for name in pictures]
    assert all(sum(name in svg for svg in drawn) == 1 for name in ("a b on cpu", "a:b on cpu", "A-B on cpu"))


def test_lengths_beyond_the_trained_context_are_marked(tmp_path: Path) -> None:
    spec = demo_spec(lengths=[400, 500], modes=["streaming"])  # behind 64 prompt tokens; 512 were learned
    text = _run(tmp_path, spec, demo_attempts(spec), cells=2)
    assert "*400 tokens*" in text
    assert "*500 tokens†*" in text
    assert "† longer than the positions that the model was trained on: pocket (512)." in text


def test_a_partial_run_is_rendered_too(tmp_path: Path) -> None:
    text = _run(tmp_path, demo_spec(), demo_attempts()[:3], end=False)
    assert "running: 3 of 20 cells" in text or "died: 3 of 20 cells" in text
    assert "passed 500 tokens" in text


def test_a_run_without_an_attempt_is_rendered_too(tmp_path: Path) -> None:
    assert "nothing to report" in _run(tmp_path, demo_spec(), [])


def test_several_budgets_open_with_the_card_table(tmp_path: Path) -> None:
    spec = demo_spec(budgets=[48 * MiB, 64 * MiB, None])
    text = _run(tmp_path, spec, demo_attempts(spec))
    answer = text.split("## ")[1]
    head = answer.index("Which card holds how much")
    assert head < answer.index("runs out of memory")
    assert re.search(r"\| mode \| 48 MiB \| 64 MiB \| the whole device \(12\.00 GiB\) \|", answer)
    assert re.search(r"\| baseline \| 1,000 \| 2,000 \| ≥ 8,000 \|", answer)
    assert "it passes every length tried, up to 8,000 tokens, and attends to the whole text" in answer


def _searched(tmp_path: Path, lengths: tuple[int, ...]) -> str:
    """A search of each mode's end whose probes go further than any measured cell."""
    spec = demo_spec(
        lengths=[500], modes=["baseline", "streaming"], boundary=BoundarySpec(max_length=8000, resolution=64)
    )
    cells = expand(spec)
    probes = [
        dataclasses.replace(cell, length=length, purpose="probe", repeat=repeat)
        for cell in cells
        for length in (2048, 3008, 3072, 8000)
        if (length <= 4096) == (cell.mode == "baseline")
        for repeat in (0, 1)
    ]
    measured = [cell for cell in cells if cell.length in lengths]
    attempts = [attempt_of(cell, number) for number, cell in enumerate([*measured, *probes])]
    return _run(tmp_path, spec, attempts, cells=2)


def test_the_picture_follows_the_probes_to_where_memory_ends(tmp_path: Path) -> None:
    text = _searched(tmp_path, lengths=(500,))
    assert "Beyond it, straight lines to the peaks of the probes of the boundary search." in text
    picture = (tmp_path / "plots" / "memory-by-tokens-pocket-cpu-64MiB-eager.svg").read_text()
    assert re.search(r"baseline: out of memory by 3,0\d\d", picture)
    assert "8,000" not in picture, "streaming goes on; the picture ends where baseline does"


def test_a_search_whose_cells_have_not_run_yet_is_reported(tmp_path: Path) -> None:
    answer = _searched(tmp_path, lengths=()).split("## ")[1]
    assert "baseline runs out of memory after 3,008 tokens (first failure at 3,072" in answer
    assert "streaming passed 8,000 tokens" in answer
    assert (
        "Use **streaming**: it goes on where a full cache no longer fits 64 MiB. Up to 3,008 tokens the full cache fits; "
        "prefer it there, because only it sees the whole text." in answer
    )


@pytest.mark.parametrize("measured", [True, False])
def test_a_search_that_has_not_ended_is_told_as_such(tmp_path: Path, measured: bool) -> None:
    spec = demo_spec(lengths=[500], modes=["baseline", "streaming"], boundary=BoundarySpec(max_length=8000))
    cells = [cell for cell in expand(spec) if cell.mode == "baseline"]
    probe = dataclasses.replace(cells[0], length=2048, purpose="probe")
    attempts = [attempt_of(cell, number) for number, cell in enumerate([probe, *cells[: int(measured)]])]
    text = _run(tmp_path, spec, attempts, cells=2, end=False)
    assert "baseline has passed 2,048 tokens, and its search has not ended." in text
    assert "≥ 2,048, not ended" in text
    assert "Use **" not in text


def test_a_search_that_was_stopped_after_a_failure_is_told_as_such(tmp_path: Path) -> None:
    spec = demo_spec(lengths=[500], modes=["baseline"], boundary=BoundarySpec(max_length=8000))
    (cell,) = expand(spec)
    attempts = [
        attempt_of(dataclasses.replace(cell, length=length, purpose="probe"), number)
        for number, length in enumerate((2048, 4096))
    ]
    text = _run(tmp_path, spec, attempts, cells=1, end=False)
    assert "first failure at 4,096; confirmed 1× below, 1× above; its search has not ended)" in text
    assert "(2,048, 4,096], not ended" in text


def test_a_search_that_was_stopped_before_anything_passed_does_not_say_that_nothing_does(
    tmp_path: Path,
) -> None:
    spec = demo_spec(lengths=[500], modes=["baseline"], boundary=BoundarySpec(max_length=8000))
    (cell,) = expand(spec)
    probe = dataclasses.replace(cell, length=4096, purpose="probe")
    text = _run(tmp_path, spec, [attempt_of(probe, 0)], cells=1, end=False)
    assert "baseline has run out of memory by 4,096 tokens, and its search has not ended" in text
    assert "(0, 4,096], not ended" in text
    assert "| none |" not in text
    assert "Use **" not in text


@pytest.mark.parametrize("synthetic", [False, True])
def test_synthetic_probes_are_no_part_of_the_picture(tmp_path: Path, synthetic: bool) -> None:
    spec = demo_spec(lengths=[500], modes=["baseline"], boundary=BoundarySpec(max_length=8000))
    (cell,) = expand(spec)
    probes = [
        attempt_of(dataclasses.replace(cell, length=length, purpose="probe", synthetic=synthetic), 10)
        for length in (3008, 3072)
    ]
    _run(tmp_path, spec, [attempt_of(cell, 1), *probes], cells=1)
    picture = (tmp_path / "plots" / "memory-by-tokens-pocket-cpu-64MiB-eager.svg").read_text()
    assert ("out of memory by" in picture) is not synthetic


def test_an_engine_that_goes_on_where_the_other_ends_is_named(tmp_path: Path) -> None:
    boundary = BoundarySpec(max_length=4000)
    spec = demo_spec(lengths=[500], modes=["baseline"], engines=["eager", "graph"], boundary=boundary)
    asked = {"eager": (500, 3008, 3072), "graph": (500, 4000)}
    probes = (
        dataclasses.replace(cell, length=length, purpose="probe", repeat=repeat)
        for cell in expand(spec) for length in asked[cell.engine] for repeat in (0, 1)
    )  # fmt: skip
    attempts = [attempt_of(probe, number) for number, probe in enumerate(probes)]
    attempts[6:] = [dataclasses.replace(a, outcome=Outcome.OK, failure=None) for a in attempts[6:]]
    answer = _run(tmp_path, spec, attempts, cells=2).split("## ")[1]
    assert "baseline (eager) runs out of memory after 3,008 tokens" in answer
    assert "baseline (graph) passed 4,000 tokens, the longest tried" in answer


@pytest.mark.parametrize("phases", [["decode", "prefill"], ["prefill", "decode"]])
def test_probes_of_a_prompt_in_one_pass_are_no_part_of_the_picture(
    tmp_path: Path, phases: list[Literal["decode", "prefill"]]
) -> None:
    spec = demo_spec(
        lengths=[500], modes=["baseline"], boundary=BoundarySpec(max_length=8000, phases=[*phases])
    )
    (cell,) = expand(spec)
    decoding = [
        attempt_of(dataclasses.replace(cell, length=length, purpose="probe", repeat=repeat), 10 + repeat)
        for length in (3008, 3072)
        for repeat in (0, 1)
    ]
    prompt = dataclasses.replace(cell, prompt_tokens=1500, length=1, purpose="probe")
    failed = dataclasses.replace(
        attempt_of(prompt, 20),
        outcome=Outcome.OOM_PREFILL,
        failure=Failure(error_type="RuntimeError", error_message="can't allocate memory"),
    )
    text = _run(tmp_path, spec, [attempt_of(cell, 1), *decoding, failed], cells=1)
    assert "baseline runs out of memory after 3,008 tokens" in text
    assert "it comes furthest, 3,008 tokens, and attends to the whole text" in text
    picture = (tmp_path / "plots" / "memory-by-tokens-pocket-cpu-64MiB-eager.svg").read_text()
    assert re.search(r"baseline: out of memory by 3,0\d\d", picture)


def test_quality_runs_show_the_third_boundary(tmp_path: Path) -> None:
    spec = demo_spec(workload="score", modes=["baseline", "streaming", "window", "recompute"], lengths=[8000])
    text = _run(tmp_path, spec, demo_attempts(spec), cells=4)
    assert "plots/quality-pocket-eager.svg" in text
    answer = text.split("## ")[1]
    assert re.search(
        r"stays below twice its in-context [\d.]+ for streaming \([+-]\d+ % beyond it, to 8,000\)", answer
    )
    assert "window from position 256" in answer
    assert re.search(
        r"\| pocket \| streaming \| eager \| [\d.]+ \| [\d.]+ \| never \| 8,000 \| 800\.0 \|", text
    )
    assert re.search(r"\| pocket \| window \| eager \| [\d.]+ \| [\d.]+ \| 256 \| 8,000 \| [\d.]+ \|", text)
    modes = re.findall(r"^\| pocket \| (\w+) \| eager \| [\d.]+ \| [\d.]+ \|", text, re.MULTILINE)
    assert modes == ["baseline", "streaming", "window", "recompute"]
    assert "recompute is 40× slower than streaming" in answer
    # Streaming, window and recompute may lie on one another: thirds of one pattern leave all three visible.
    drawn = re.findall(
        r'stroke-dasharray="5,10"(?: stroke-dashoffset="(\d+)")?',
        (tmp_path / "plots" / "quality-pocket-eager.svg").read_text(),
    )
    assert sorted(int(offset or 0) for offset in drawn) == [0, 5]


def test_injected_acceptance_and_random_weights_are_said_loudly(tmp_path: Path) -> None:
    from orchestrator.spec import SpeculationSpec

    spec = demo_spec(
        models=[ModelSpec(target="random:pythia-14m", draft="random:pythia-14m")],
        speculation=SpeculationSpec(gamma=4, acceptance=0.6),
        lengths=[500],
    )
    text = _run(tmp_path, spec, demo_attempts(spec), cells=4)
    assert "> **Note:** Random weights: random:pythia-14m." in text
    assert "injected 0.6" in text
    assert "Use **streaming**" in text or "Use **baseline**" in text, "a forced acceptance recommends nothing"


def test_a_crash_is_told_with_its_evidence_and_a_retry_is_counted(tmp_path: Path) -> None:
    attempts = demo_attempts()[:4]
    crash = Failure(
        error_type="Killed",
        error_message="the child ended on <signal> 11",
        memory_snapshot=b"a snapshot",
        signal=11,
        last_output="Fatal Python error: Segmentation fault ```",
        stack_dump="Thread 0x1 (most recent call first)",
    )
    lost = dataclasses.replace(
        attempts[0],
        lease_id="lost",
        outcome=Outcome.INFRA_ERROR,
        failure=Failure(error_type="ActorLost", error_message="gone"),
    )
    attempts[0] = dataclasses.replace(attempts[0], attempt=2)
    attempts[2] = dataclasses.replace(attempts[2], outcome=Outcome.CRASHED, failure=crash)
    text = _run(tmp_path, demo_spec(), [lost, *attempts])
    assert "1 of 4 cells did not end ok (1 crashed). An out-of-memory is a result" in text
    assert "signal 11" in text
    assert "Segmentation fault ```" in text
    assert "Thread 0x1 (most recent call first)" in text
    snapshot = re.search(r"<code>(snapshots/[0-9a-f]{16}\.pickle)</code>", text)
    assert snapshot is not None
    assert (tmp_path / snapshot[1]).read_bytes() == b"a snapshot"
    assert "1 attempt failed and the cell was tried again" in text


def test_a_model_larger_than_one_device_is_told_with_the_number_it_would_need(tmp_path: Path) -> None:
    attempt = demo_attempts()[0]
    cell = dataclasses.replace(attempt.cell, budget=None)
    device = dataclasses.replace(CPU, total_bytes=80 * MiB, reserve_bytes=2 * MiB)
    error = Failure(error_type="RuntimeError", error_message="can't allocate memory")
    larger = dataclasses.replace(
        attempt, cell=cell, device=device, outcome=Outcome.OOM_LOAD, failure=error, context_bytes=8 * MiB
    )
    with open_run(tmp_path, demo_spec()) as run:
        run.journal.append([Record(run.run_id, larger, predicted_peak_bytes=151 * MiB)])
    render(tmp_path)
    # 141 MiB beside the overhead of 10, on devices with room for 70
    assert (
        "needs 151.0 MiB, 3 such devices at least; can't allocate memory"
        in (tmp_path / "report.md").read_text()
    )


def test_a_part_that_was_set_aside_is_named_at_the_top(tmp_path: Path) -> None:
    with open_run(tmp_path, demo_spec()) as run:
        for attempt in demo_attempts()[:2]:
            run.journal.append([Record(run.run_id, attempt)])
    torn = sorted((tmp_path / "journal").glob("*.parquet"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    render(tmp_path)
    assert torn.name in (tmp_path / "report.md").read_text().split("## ")[0]
    assert torn.exists(), "rendering changes nothing in the journal"


def test_hostile_names_and_errors_stay_text(tmp_path: Path) -> None:
    name = "evil/<script>alert(1)</script>\x00\x1b[31m|`x`"
    spec = demo_spec(models=[ModelSpec(target=name, draft=name)], lengths=[500, 8000])
    attempts = demo_attempts(spec)
    text = _run(tmp_path, spec, attempts, cells=8)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1
    assert "<script>alert" not in page
    assert "<script" not in re.sub(r"`{3,}text\n.*?\n`{3,}", "", text, flags=re.DOTALL)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", path.name) for path in (tmp_path / "plots").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", "spec.yaml", "manifest.json", "journal", "tables", "plots", "report.md", "report.html",
        "answer.json",
    }  # fmt: skip


def test_where_there_is_no_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no run folder"):
        render(tmp_path / "none")
