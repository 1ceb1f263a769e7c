"""All that is wrong with a sweep file at once, each with its place; and what may be written shorter."""

from pathlib import Path

import pytest

from orchestrator.spec import load_spec, read_spec
from orchestrator.spec_error import SpecError

SHORT = "name: t\nmodels: pocket\n"


def faults(text: str, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(SpecError) as refused:
        load_spec(text, overrides or [], "sweep.yaml")
    return str(refused.value).splitlines()


def test_every_fault_has_its_line() -> None:
    text = """name: my card
models:
  - target: pocket
    dtipe: bfloat16
  - {draft: pocket-draft}
modes: [baseline]
lengths:
  - 500
  - 1k
boundary: {reach: prefil,
  confirm: many}
"""
    assert sorted(faults(text, ["repeats=0"])) == sorted(
        [
            "sweep.yaml, line 1: name: 'my card' is not valid: letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit, at most 100",
            "sweep.yaml, line 4: unknown key 'models.0.dtipe'; the nearest valid key is 'dtype'",
            "sweep.yaml, line 5: models.1.target: missing; add `models.1.target:`",
            "sweep.yaml, line 7: lengths: [500, '1k'] is not valid: a whole number, a list of them, or a range such as "
            "500-8000*2 or 1000-4000+500",
            "sweep.yaml, line 10: boundary.reach: 'prefil' is not valid: the nearest is 'prefill' (of decode, "
            "prefill, synthetic)",
            "sweep.yaml, line 11: boundary.confirm: 'many' is not valid: a whole number",
            "--set repeats: 0 is not valid: 1 or more",
        ]
    )


def test_what_modes_cannot_do_is_told_of_each_with_its_line() -> None:
    text = SHORT + "modes: [nope, baseline+spec]\nengines: graph\nbatch_sizes: 4\n"
    told = faults(text)
    assert [line.partition(": ")[0] for line in told] == [
        "sweep.yaml, line 3",
        "sweep.yaml, line 5",
        "sweep.yaml, line 3",
    ]
    assert "unknown mode 'nope'" in told[0]
    assert "batch size 1 at most" in told[1]
    assert "'baseline+spec' needs a draft" in told[2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dtype: float32", "unknown key 'dtype'; it belongs below 'models'"),
        ("streaming: {gamma: 2}", "unknown key 'streaming.gamma'; it belongs below 'speculation'"),
        ("speculation: {repeats: 2}", "unknown key 'speculation.repeats'; it belongs to the top"),
        ("memory_snapshot: maybe", "memory_snapshot: 'maybe' is not valid: true or false"),
        ("seed: 1.5", "seed: 1.5 is not valid: a whole number"),
        ("time_limit_s: -1", "time_limit_s: -1 is not valid: more than 0"),
        ("modes: []", "modes: [] is not valid: at least one"),
        ("corpus: [a]", "corpus: ['a'] is not valid: one text"),
        ("boundary: 64", "boundary: 64 is not valid: keys with values"),
        ("speculation: {acceptance: high}", "speculation.acceptance: 'high' is not valid: a number"),
    ],
)
def test_a_fault_is_told_once_and_in_words(line: str, words: str) -> None:
    told = faults(SHORT + line)
    assert len(told) == 1
    assert told[0].startswith(f"sweep.yaml, line 3: {words}")


def test_a_sweep_file_without_keys_is_named() -> None:
    assert faults("") == [
        "sweep.yaml: a sweep file has keys with values, such as `name: my-sweep`; this one is empty"
    ]
    assert faults("- a") == [
        "sweep.yaml: a sweep file has keys with values, such as `name: my-sweep`; this one is a list"
    ]


def test_the_file_is_named_where_it_is_no_yaml(tmp_path: Path) -> None:
    for text, words in (
        ("name: [", ": not YAML"),
        ("name: a\nname: b\n", ", line 2: key 'name' is given twice"),
    ):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(SpecError, match=f"{tmp_path}/s.yaml{words}"):
            read_spec(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("modes: baseline", "modes: [baseline]"),
        ("engines: graph", "engines: [graph]"),
        ("budgets: 48MiB", "budgets: [48MiB]"),
        ("budgets: device", "budgets: [device]"),
        ("repetition_penalty: 1.1", "repetition_penalty: [1.1]"),
        ("allocator: expandable", "allocator: [expandable]"),
        ("devices: H100", "devices: [H100]"),
        ("boundary: {phases: prefill}", "boundary: {phases: [prefill]}"),
    ],
)
def test_a_single_value_is_a_list_of_one(short: str, long: str) -> None:
    assert load_spec(SHORT + short) == load_spec(SHORT + long)


def test_a_name_is_a_model_with_a_target() -> None:
    full = load_spec("name: t\nmodels: [{target: pocket}, {target: gpt2}]")
    assert load_spec("name: t\nmodels: [pocket, gpt2]") == full
    assert load_spec("name: t\nmodels: [pocket, {target: gpt2}]") == full
    one = load_spec("name: t\nmodels: {target: pocket}")
    assert load_spec("name: t\nmodels: pocket") == one


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"), ("float", "float32"),
        ("torch.bfloat16", "bfloat16"), ("FP32", "float32"), ("float16", "float16"),
    ],
)  # fmt: skip
def test_short_names_of_dtypes(written: str, meant: str) -> None:
    assert load_spec(f"name: t\nmodels: {{target: pocket, dtype: {written}}}").models[0].dtype == meant


@pytest.mark.parametrize("key", ["models.0.dtype", "models[0].dtype"])
def test_an_override_reaches_into_a_model_that_is_only_a_name(key: str) -> None:
    assert load_spec(SHORT, [f"{key}=fp32"]).models[0].dtype == "float32"
