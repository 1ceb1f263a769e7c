"""The same promises on a GPU, where half precision takes other kernels and a wait per token would cost."""

import pytest
import torch

from tests.workers.engines.eager.tiny import FAMILIES, SINKS, WINDOW, cell, loaded, noisy, text, tiny
from tests.workers.engines.heard import Heard
from tests.workers.engines.streaming_reference import reference_logits
from workers.engines.eager import open_session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
def test_streaming_logits_are_the_reference_of_the_rounded_weights(family, dtype, bound) -> None:
    model = tiny(family, dtype)
    true = reference_logits(tiny(family, dtype).double(), text(120), SINKS, WINDOW)
    found = open_session(cell("streaming", workload="score"), loaded(model.cuda()), None).logits(text(120))
    assert float((found - true).abs().max() / true.abs().max()) < bound


@pytest.mark.parametrize("mode", ["baseline", "streaming"])
def test_speculation_changes_no_token_in_float32(mode: str) -> None:
    model = tiny("gpt_neox").cuda()
    prompt_BT = text(70)[None]
    plain = open_session(cell(mode, prompt=70), loaded(model, (5,)), None).generate(prompt_BT, 100, Heard())
    for acceptance in (None, 0.7):
        asked = cell(f"{mode}+spec", prompt=70, gamma=4, acceptance=acceptance, penalty=1.0)
        session = open_session(asked, loaded(model, (5,)), loaded(noisy(model), (5,)))
        found = session.generate(prompt_BT, 100, Heard())
        assert torch.equal(found.ids_BT, plain.ids_BT)
        assert found.eos_at == plain.eos_at
        assert found.draft_step_s > 0
        assert found.verify_step_s > 0


def test_streaming_allocates_nothing_that_stays_after_the_first_tokens() -> None:
    model = tiny("llama", torch.bfloat16).cuda()
    allocated = []

    class Metered(Heard):
        def tokens(self, produced: int) -> None:
            allocated.append(torch.cuda.memory_allocated())

    open_session(cell("streaming", length=600), loaded(model), None).generate(text(10)[None], 600, Metered())
    # the ids themselves grow, in blocks of 512 bytes: 8 bytes a token, each beside its longer copy
    assert max(allocated[100:]) - allocated[100] < 600 * 8 * 4
