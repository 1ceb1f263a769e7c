import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.names import Names, short_names


@pytest.mark.parametrize(
    ("targets", "called"),
    [
        (["EleutherAI/pythia-2.8b", "gpt2"], ["pythia-2.8b", "gpt2"]),
        (["/data/one/hf", "/data/two/hf"], ["one/hf", "two/hf"]),
        (["/data/one/hf", "/data/two/hf", "/data/gpt2"], ["one/hf", "two/hf", "gpt2"]),
        (["/a/x/hf", "/b/x/hf", "/b/y/hf"], ["a/x/hf", "b/x/hf", "y/hf"]),
        (["hf", "other/hf"], ["hf", "other/hf"]),
        (["pocket", "random:pocket"], ["pocket", "random:pocket"]),
        (["run/hf", "run/hf/"], ["run/hf", "run/hf/"]),
        (["x/model.gguf"], ["model.gguf"]),
    ],
)
def test_a_name_is_as_short_as_it_can_be(targets: list[str], called: list[str]) -> None:
    assert [short_names(targets)[target] for target in targets] == called


_PARTS = st.lists(st.sampled_from(["a", "b", "hf", ""]), min_size=1, max_size=4)
_TARGETS = st.builds(lambda random, parts: random + "/".join(parts), st.sampled_from(["", "random:"]), _PARTS)


@given(st.sets(_TARGETS, max_size=8))
def test_no_two_models_have_one_name(targets: set[str]) -> None:
    found = short_names(targets)
    assert set(found) == targets
    assert len(set(found.values())) == len(targets)


def test_a_dtype_is_told_where_a_model_has_several() -> None:
    names = Names.of(
        [("x/hf", "float32", None), ("x/hf", "bfloat16", "y/small"), ("gpt2", "float32", "z/small")]
    )
    assert names.model("x/hf", "float32") == "hf (float32)"
    assert names.model("x/hf", "bfloat16") == "hf (bfloat16)"
    assert names.model("gpt2", "float32") == "gpt2"
    assert [names.target(draft) for draft in ("y/small", "z/small")] == ["y/small", "z/small"]
