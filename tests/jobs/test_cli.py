"""The command line, as a person or a script meets it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from jobs.cli import app, main
from workers.cell import ModelRef
from workers.models.load import load_model

SWEEP = """
name: tiny
models: [{target: "random:pythia-14m", draft: "random:pythia-14m", dtype: float32}]
modes: [baseline, streaming, baseline+spec]
lengths: [16, 32]
prompt_tokens: 8
streaming: {sinks: 2, window: 8}
budgets: [256MiB, 1GiB]
repeats: 2
"""


@dataclass(frozen=True)
class Exited:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def oomline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Exited]:
    """The command in this process: as a console script would call it."""

    def call(*arguments: str | Path) -> Exited:
        monkeypatch.setattr(sys, "argv", ["oomline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Exited(int(ended.value.code or 0), said.out, said.err)

    return call


def write_sweep(folder: Path, text: str = SWEEP) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lenghts: [4]", ["lenghts", "lengths"]),
        ("lengths: [-4]", ["lengths", "-4"]),
        ("modes: [streming]", ["streming", "streaming"]),
        ("streaming: {sinks: 9, window: 4}", ["window", "sinks"]),
        ("budgets: [1MiB]", ["budgets", "MiB"]),
        ("corpus: missing.txt", ["corpus", "missing.txt"]),
    ],
)
def test_bad_input_is_exit_2_and_one_line(
    oomline: Callable[..., Exited], tmp_path: Path, change: str, words: list[str]
) -> None:
    key = change.partition(":")[0]
    text = "\n".join(line for line in SWEEP.splitlines() if not line.startswith(key + ":")) + "\n" + change
    result = oomline("run", write_sweep(tmp_path, text), "--out", tmp_path / "out")
    assert result.status == 2
    first_word = "checking the models, then looking for Ray\n"
    assert result.stdout == "" or (result.stdout.count("\n") == 1 and result.stdout.endswith(first_word))
    message = result.stderr.strip().splitlines()
    assert len(message) == 1, result.stderr
    for word in words:
        assert word in message[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_sweep_file_is_exit_2(oomline: Callable[..., Exited], tmp_path: Path) -> None:
    result = oomline("plan", tmp_path / "nothing.yaml")
    assert result.status == 2
    assert "nothing.yaml" in result.stderr


def test_status_of_no_run_folder_is_exit_2(oomline: Callable[..., Exited], tmp_path: Path) -> None:
    result = oomline("status", tmp_path)
    assert result.status == 2


def test_plan_says_how_many_devices_a_model_larger_than_one_would_need(tmp_path: Path) -> None:
    sweep = tmp_path / "large.yaml"
    sweep.write_text(
        "name: large\nmodels: [{target: 'random:pythia-12b', dtype: bfloat16}]\nmodes: [baseline]\nlengths: [500]"
    )
    result = CliRunner().invoke(app, ["plan", str(sweep), "--device", "L4:16GiB"], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    assert "does not load: 2 devices at least" in result.output


def test_plan_as_json_has_the_contracts_keys(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(write_sweep(tmp_path)), "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["cells"] == 3 * 2 * 2 * 2
    keys = {"model", "mode", "engine", "batch_size", "budget_bytes", "length"}
    keys |= {"predicted_peak_bytes", "predicted_boundary", "analytic_bytes_per_token"}
    keys |= {"analytic_constant_bytes", "predicted_by"}
    for prediction in plan["predictions"]:
        assert keys <= set(prediction)
        if prediction["mode"] == "streaming":
            assert prediction["predicted_boundary"] is None
            assert prediction["analytic_bytes_per_token"] == 0
            assert prediction["analytic_constant_bytes"] > 0
        if prediction["mode"] == "baseline":
            # 6 layers x (key + value) x 128 elements x 4 bytes
            assert prediction["analytic_bytes_per_token"] == 6 * 2 * 128 * 4
            assert prediction["analytic_constant_bytes"] == 0
    boundaries = {
        p["budget_bytes"]: p["predicted_boundary"] for p in plan["predictions"] if p["mode"] == "baseline"
    }
    assert 0 < boundaries[256 * 2**20] < boundaries[2**30]


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_logits_of_the_baseline_are_transformers_own(tmp_path: Path, engine: str) -> None:
    ids = [5, 17, 300, 42, 7, 7, 1999, 12]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    arguments = ["logits", "--model", "random:pythia-14m", "--mode", "baseline", "--engine", engine]
    result = CliRunner().invoke(
        app, [*arguments, "--tokens", str(tmp_path / "ids.json"), "--out", str(tmp_path / "l.safetensors")]
    )
    assert result.exit_code == 0, result.output
    found = load_file(tmp_path / "l.safetensors")["logits"]
    ref = ModelRef(target="random:pythia-14m", dtype="float32")
    model = load_model("random:pythia-14m", ref, torch.device("cpu")).model
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_doctor_tells_versions_as_json() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["packages"]["torch"] == torch.__version__
    assert set(found) >= {"machine", "gpus", "packages", "environment"}
    assert found["code"]["torch is for"] == (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
    )
    assert found["readiness"].startswith(
        "ready: " if found["gpus"] else f"ready: {psutil.cpu_count()} CPU slots; no GPU: "
    )


def test_rows_of_a_corpus_without_a_text_are_told(tmp_path: Path, oomline: Callable[..., Exited]) -> None:
    corpus = tmp_path / "texts[1].jsonl"
    corpus.write_text('{"text": "one"}\n{"text": null}\n{"other": 1}\n')
    said = oomline("plan", write_sweep(tmp_path, SWEEP + "corpus: 'texts[1].jsonl'\n"))
    assert said.status == 0
    assert said.stderr == (
        f"oomline: note: corpus {corpus}: 2 rows skipped (`text` is null, no `text`), row 2 the first\n"
    )
    corpus.write_text('{"body": "one"}\n')
    said = oomline("plan", write_sweep(tmp_path, SWEEP + "corpus: 'texts[1].jsonl'\n"))
    assert said.status == 2
    assert said.stderr.startswith(
        f"oomline: corpus: '{corpus}': none of its 1 rows has a text in a field `text`"
    )
    corpus.with_suffix(".csv").write_text("text")
    said = oomline("plan", write_sweep(tmp_path, SWEEP + "corpus: 'texts[1].csv'\n"))
    assert said.status == 2
    assert (
        f"corpus: '{corpus.with_suffix('.csv')}' is no text; give a .txt, .jsonl or .parquet file"
        in said.stderr
    )
    corpus.with_suffix(".parquet").write_text("no parquet")
    said = oomline("plan", write_sweep(tmp_path, SWEEP + "corpus: 'texts[1].parquet'\n"))
    assert (said.status, said.stderr.count("\n")) == (2, 1)
    assert "cannot be read: ArrowInvalid" in said.stderr
