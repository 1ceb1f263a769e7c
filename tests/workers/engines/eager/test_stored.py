"""transformers' caches in fewer bits: what they hold, and their faults as refusals in one line."""

from dataclasses import replace

import pytest
import torch
from transformers.cache_utils import Fp8QuantizedLayer

from tests.workers.engines.eager.tiny import cell, loaded, text, tiny
from tests.workers.engines.heard import Heard
from workers import kv_dtype
from workers.engines.eager import open_session, stored
from workers.engines.session import ModeUnsupported


def asked(mode: str = "baseline", **fields: object):
    of_cell = {name: fields.pop(name) for name in ("kv_dtype", "kv_placement") if name in fields}
    return replace(cell(mode, **fields), **of_cell)


def test_fp8_halves_the_bytes_and_changes_the_logits_a_little() -> None:
    model, ids_T = tiny("llama", torch.bfloat16), text(40)
    kept, found = [], []
    for name in ("auto", "fp8"):
        session = open_session(asked(kv_dtype=name, prompt=40, length=1), loaded(model), None)
        heard = Heard()
        session.generate(ids_T[None], 1, heard)
        kept.append(heard.kv_bytes[-1])
        with session._reading() as cache, torch.no_grad():
            model(ids_T[None, :-1], past_key_values=cache)
            found.append(model(ids_T[None, -1:], past_key_values=cache).logits.float())
        assert session.in_effect().cache_class == ("DynamicCache" if name == "auto" else "QuantizedCache")
    assert kept[1] == pytest.approx(kept[0] / 2, rel=0.01)
    gap = float((found[1] - found[0]).norm() / found[0].norm())
    assert 1e-4 < gap < 0.3


def test_logits_that_are_not_finite_are_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Fp8QuantizedLayer._dequantize

    def failing(self: Fp8QuantizedLayer, held: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = read(self, held)
        return found * torch.nan if found.shape[2] > 14 else found

    monkeypatch.setattr(Fp8QuantizedLayer, "_dequantize", failing)
    session = open_session(asked(kv_dtype="fp8", prompt=10, length=20), loaded(tiny("llama")), None)
    with pytest.raises(ModeUnsupported, match="not finite at new token 5"):
        session.generate(text(10)[None], 20, Heard())


@pytest.mark.parametrize(("name", "packages"), [("int8", "hqq"), ("int4", "hqq or optimum-quanto")])
def test_a_missing_package_is_named(name: str, packages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_is_there", lambda module: False)
    with pytest.raises(ModeUnsupported, match=f"not installed: {packages}$"):
        open_session(asked(kv_dtype=name), loaded(tiny("llama")), None)


def test_what_transformers_cannot_do_is_refused() -> None:
    model = loaded(tiny("llama"))
    for cell_, words in (
        (asked("baseline+spec", kv_dtype="fp8", gamma=2), "take back a rejected token"),
        (asked("streaming", kv_dtype="fp8"), "keeps its cache itself"),
        (asked("tova", kv_placement="host"), "keeps its cache itself"),
        (asked("static", kv_dtype="fp8"), "keeps the model's dtype"),
        (asked(kv_dtype="fp8", kv_placement="host"), "both quantised and offloaded"),
    ):
        with pytest.raises(ModeUnsupported, match=words):
            open_session(cell_, model, model if cell_.model.draft else None)


def test_layers_with_a_window_are_refused() -> None:
    model = tiny("llama")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    model.config.sliding_window = 8
    with pytest.raises(ModeUnsupported, match=r"kv_dtype fp8: .*full attention"):
        open_session(asked(kv_dtype="fp8"), loaded(model), None)


def test_a_cpu_has_no_host_beside_it() -> None:
    assert kv_dtype.refusal_on_cpu("device") is None
    assert "this device is a CPU" in (kv_dtype.refusal_on_cpu("host") or "")
