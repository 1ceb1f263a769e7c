"""The sweep file: what is accepted, what is refused, and in which words."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import strict_yaml
from orchestrator.spec import (
    SpecError,
    SweepSpec,
    dump_spec,
    load_spec,
    parse_bytes,
    parse_lengths,
    rate_for_mean_length,
)

MINIMAL = "name: t\nmodels: [{target: pocket, draft: pocket-draft}]\n"


def test_minimal_has_the_documented_defaults() -> None:
    spec = load_spec(MINIMAL)
    assert spec.lengths == [500, 1000, 2000, 4000, 8000]
    assert spec.prompt_tokens == [64]
    assert (spec.streaming.sinks, spec.streaming.window) == (4, 512)
    assert spec.budgets == [None]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lenghts: [500]", ["lenghts", "lengths"]),
        ("lengths: [500, -4]", ["lengths", "-4"]),
        ("lengths: 10-5*2", ["lengths", "10-5*2"]),
        ("modes: [basline]", ["modes", "basline", "baseline"]),
        ("streaming: {sinks: 9, window: 4}", ["streaming", "9", "4"]),
        ("streaming: {sink: 9}", ["streaming.sink", "sinks"]),
        ("budgets: [8GiG]", ["budgets", "8GiG"]),
        ("budgets: [-1]", ["budgets", "-1"]),
        ("repeats: 0", ["repeats", "0"]),
        ("allocator: [expandible]", ["allocator", "expandible", "PYTORCH_ALLOC_CONF"]),
        ("allocator: ['max_split_size_mb:one']", ["allocator", "max_split_size_mb"]),
        ("repetition_penalty: [.nan]", ["repetition_penalty", "nan"]),
        ("batch_sizes: [2]\nmodes: [baseline+spec]", ["batch_sizes", "baseline+spec"]),
        ("workload: score\nmodes: [streaming+spec]", ["streaming+spec", "score"]),
        ("modes: [recompute]", ["recompute", "generate"]),
        ("engines: [graph]\nworkload: score\nmodes: [recompute]", ["graph", "recompute"]),
        ("speculation: {gamma: 4, acceptance: [0.5]}", ["acceptance", "gamma"]),
    ],
)
def test_refusals_name_key_value_and_remedy(line: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(MINIMAL + line)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "lengths: [500]\nseed: 1\nlengths: [100]",
            "line 5: key 'lengths' is given twice (first in line 3): keep one",
        ),
        ("streaming: {window: 512, sinks: 4, window: 64}", "line 3: key 'window' is given twice: keep one"),
        (
            "streaming:\n  sinks: 4\n  sinks: 2",
            "line 5: key 'sinks' is given twice (first in line 4): keep one",
        ),
        ("lengths: [0100]", "line 3: 0100 starts with 0, which YAML reads as octal (64): write 100"),
        ("seed: -010", "line 3: -010 starts with 0, which YAML reads as octal (-8): write 10"),
        ("corpus: 007", "line 3: 007 starts with 0, which YAML reads as octal (7): write 7, or quote it"),
        ('corpus: "a\\0b"', r"line 3: 'a\x00b' holds a character that no name can hold"),
        ('corpus: "\\ud800"', r"line 3: '\ud800' holds a character that no name can hold"),
        ("lengths: [1:30]", "lengths: ['1:30'] is not valid"),
        ("lengths: [09]", "lengths: ['09'] is not valid"),
        ("time_limit_s: 1:30", "time_limit_s: '1:30' is not valid"),
        ("seed: 2024-01-01", "seed: '2024-01-01' is not valid"),
        ("corpus: true", "corpus: True is not valid"),
        ("seed: yes", "seed: 'yes' is not valid"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(MINIMAL + text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["streaming={window: 9, window: 8}"], "--set streaming: key 'window' is given twice: keep one"),
        (["lengths=[0100]"], "--set lengths: 0100 starts with 0, which YAML reads as octal (64): write 100"),
        (["seed=1", "seed=2"], "--set seed: given twice: keep one"),
        (["corpus=\udcff"], "--set corpus: '\\udcff' is not YAML"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused_in_an_override(
    override: list[str], words: str
) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(MINIMAL, override)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["no", "yes", "on", "off", "2024-01-01", "y", "09", "1e5", "0o17"])
def test_plain_text_that_yaml_takes_for_something_else_is_the_text_that_was_written(name: str) -> None:
    spec = load_spec(f"name: {name}\nmodels: [{{target: {name}, trust_remote_code: yes}}]\ncorpus: {name}")
    assert (spec.name, spec.models[0].target, spec.corpus) == (name, name, name)
    assert spec.models[0].trust_remote_code is True
    assert load_spec(dump_spec(spec)) == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000), ("0x10", 16), ("0b11", 3), ("0", 0), ("-5", -5), ("0.5", 0.5), ("-1.5e+3", -1500.0),
        (".5", 0.5), ("true", True), ("False", False), ("~", None), ("null", None), ("8GiB", "8GiB"),
        ("500-8000*2", "500-8000*2"), (".inf", float("inf")), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)  # fmt: skip
def test_what_has_no_surprise_is_read_as_yaml_reads_it(text: str, value: object) -> None:
    assert strict_yaml.load(text) == yaml.safe_load(text) == value
    assert type(strict_yaml.load(text)) is type(value)


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    with pytest.raises(SpecError, match=r"name: '\.\./escape' is not valid"):
        load_spec(MINIMAL.replace("name: t", "name: ../escape"))


def test_a_speculative_mode_needs_a_draft() -> None:
    with pytest.raises(SpecError, match="draft"):
        load_spec("name: t\nmodels: [{target: pocket}]\nmodes: [baseline+spec]")


def test_resolved_file_reads_back_equal() -> None:
    spec = load_spec(
        MINIMAL + "budgets: [8GiB, device]\nboundary: {resolution: 32}\nspeculation: {mean_length: 1.61}"
    )
    assert load_spec(dump_spec(spec)) == spec


def test_overrides() -> None:
    spec = load_spec(MINIMAL, ["lengths=[10, 20]", "streaming.window=99", "models.0.dtype=float16"])
    assert spec.lengths == [10, 20]
    assert spec.streaming.window == 99
    assert spec.models[0].dtype == "float16"


@pytest.mark.parametrize(
    "override", ["lengths", "=3", "models.7.dtype=float16", "name.x=3", "lengths=[1", "nope=1"]
)
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(SpecError):
        load_spec(MINIMAL, [override])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("500-8000*2", [500, 1000, 2000, 4000, 8000]),
        ("1-10+4", [1, 5, 9]),
        (["5", 3], None),
        ([3, "4-8*2"], [3, 4, 8]),
    ],
)
def test_ranges(text: object, numbers: list[int] | None) -> None:
    if numbers is None:
        with pytest.raises(ValueError, match="range"):
            parse_lengths(text)
    else:
        assert parse_lengths(text) == numbers


def test_sizes() -> None:
    assert parse_bytes("8GiB") == 8 * 2**30
    assert parse_bytes("1.5 MiB") == 3 * 2**19
    assert parse_bytes("2GB") == 2 * 10**9
    assert parse_bytes("device") is None


@given(gamma=st.integers(1, 16), fraction=st.floats(0, 1))
def test_rate_for_mean_length_inverts_the_mean(gamma: int, fraction: float) -> None:
    mean = 1 + gamma * fraction
    rate = rate_for_mean_length(mean, gamma)
    assert sum(rate**k for k in range(gamma + 1)) == pytest.approx(mean, abs=1e-6)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=8)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=8,
)
KEYS = [*SweepSpec.model_fields, "modles", "", "0"]
NESTED = [
    "models.0.target",
    "models.0.dtype",
    "streaming.sinks",
    "speculation.gamma",
    "boundary.resolution",
    "boundary.phases",
]


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=4))
def test_any_yaml_value_in_any_place_is_a_spec_or_one_message(extra: dict[str, object]) -> None:
    raw = yaml.safe_load(MINIMAL) | extra
    assert_spec_or_message(yaml.safe_dump(raw), [])


@settings(max_examples=200)
@given(st.sampled_from(NESTED), anything)
def test_any_value_at_a_nested_key_is_a_spec_or_one_message(key: str, value: object) -> None:
    assert_spec_or_message(MINIMAL, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])


@settings(max_examples=200)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin1")))
def test_any_text_is_a_spec_or_one_message(text: str) -> None:
    assert_spec_or_message(text, [])


def assert_spec_or_message(text: str, overrides: list[str]) -> None:
    try:
        spec = load_spec(text, overrides)
    except SpecError as error:
        message = str(error)
    else:
        assert load_spec(dump_spec(spec)) == spec
        return
    assert all(message.split("\n"))


def test_more_devices_for_a_cell_than_the_sweep_may_use_are_refused() -> None:
    assert load_spec(MINIMAL + "devices_per_cell: 2\n").devices_per_cell == [2]
    with pytest.raises(SpecError, match=r"devices_per_cell: 4 with max_devices: 2: make it at least 4"):
        load_spec(MINIMAL + "devices_per_cell: [1, 4]\nmax_devices: 2\n")
    with pytest.raises(SpecError, match="devices_per_cell"):
        load_spec(MINIMAL + "devices_per_cell: [0]\n")
