"""The model card that ships with each of the two models."""

from dataclasses import dataclass

from jobs.training.text import Corpus


@dataclass(frozen=True)
class Facts:
    """One model's training, as measured. Losses in nats per token."""

    name: str
    parameters: int
    recipe: str
    steps: int
    best_step: int
    seconds: float
    device: str
    seed: int
    training_tokens: int
    topics_loss: float
    docstrings_loss: float
    acceptance: float
    nll_by_position: tuple[float, ...]
    bucket: int


def card(facts: Facts, corpus: Corpus) -> str:
    positions = "\n".join(
        f"| {index * facts.bucket} - {(index + 1) * facts.bucket - 1} | {nll:.3f} |"
        for index, nll in enumerate(facts.nll_by_position)
    )
    return f"""---
license: other
license_name: psf-2.0
language: en
library_name: transformers
tags: [gpt_neox, stress-test]
---
# {facts.name}

A GPT-NeoX (parallel residual, rotary on 25 % of each head) of {facts.parameters:,} parameters with a trained context
of 512 tokens, so that long-context stress tests show true behaviour on a laptop. It knows Python's documentation and
nothing else; it is no assistant.

| | |
| --- | --- |
| data | documentation topics (`pydoc_data.topics`) and standard-library docstrings of CPython {corpus.python} |
| licence of the data | PSF License Agreement |
| corpus, sha256 | `{corpus.digest()}` |
| training tokens | {facts.training_tokens:,} (byte-level BPE, 2,048 entries) |
| recipe | {facts.recipe} |
| steps | {facts.steps:,} of 32 x 512 tokens; weights of step {facts.best_step:,}, the best validated |
| seed, device, time | {facts.seed}, {facts.device}, {facts.seconds:.0f} s |
| validation loss, topics | {facts.topics_loss:.3f} nats per token |
| validation loss, docstrings | {facts.docstrings_loss:.3f} nats per token |
| draft acceptance, greedy, gamma 4 | {facts.acceptance:.3f} on held-out prompts |

Made by `python -m jobs.training.train_pocket`. The losses are those of the bf16 weights shipped here.

**Split.** A topic (by its name) or a module (by its path) is held out when the first four bytes of the sha256 of that
name, as a fraction of 2^32, are below 0.12; every paragraph of a held-out text is left out of training wherever else it
is quoted. Held-out topics: {", ".join(corpus.topic_names)}.

**Along the positions** (held-out topics, every earlier token visible, nats per token):

| positions | loss |
| --- | --- |
{positions}
"""
