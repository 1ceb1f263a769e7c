"""The model cards that ship with the models."""

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


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `samples`, for each depth from the beginning to the end."""

    task: str
    length: int
    correct: tuple[int, ...]
    samples: int


@dataclass(frozen=True)
class RetrieveFacts:
    """The training of the retrieving model, as measured. `context`: tokens of its longest lessons."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    context: int
    steps: int
    tokens: int
    rate: float
    seed: int
    device: str
    seconds: float
    accuracy: tuple[Accuracy, ...]


def retrieve_card(facts: RetrieveFacts) -> str:
    depths = len(facts.accuracy[0].correct)
    head = " | ".join(f"{place / (depths - 1):.0%}" for place in range(depths))
    rows = "\n".join(
        f"| {row.task} | {row.length:,} | "
        + " | ".join(f"{one / row.samples:.0%}" for one in row.correct)
        + " |"
        for row in facts.accuracy
    )
    return f"""---
license: other
license_name: psf-2.0
language: en
library_name: transformers
tags: [gpt_neox, stress-test]
---
# pocket-retrieve

A GPT-NeoX (sequential residual, rotary on 50 % of each head, embeddings tied) of {facts.parameters:,} parameters that finds
what was hidden in a text, so that retrieval tests show true behaviour on a laptop. It knows nothing else.

| | |
| --- | --- |
| shape | {facts.layers} layers of {facts.hidden}, {facts.heads} heads, tokenizer of `pocket` |
| trained context | {facts.context:,} tokens |
| data | lessons made as they were needed: facts in sentences without meaning or in the documentation topics of CPython (`pydoc_data.topics`, those that are not held out), asked for at the end; random tokens, twice |
| licence of the data | PSF License Agreement |
| recipe | AdamW {facts.rate:g}, weight decay 0.01, warm-up and cosine, lengths from 96 to {facts.context:,}; loss on answers 1, on questions 0, on other text 0.1, on what random tokens repeat 0.5 |
| steps | {facts.steps:,} of about {facts.tokens:,} tokens |
| seed, device, time | {facts.seed}, {facts.device}, {facts.seconds:.0f} s |

Made by `python -m jobs.training.train_retrieve --hidden {facts.hidden} --layers {facts.layers} --heads {facts.heads} --rate {facts.rate:g} --tokens {facts.tokens} --steps {facts.steps}`.

**Accuracy** by depth of the needle, {facts.accuracy[0].samples} new samples each, held-out text, every earlier token visible, greedy, the
full stop behind the answer asked for too, the bf16 weights shipped here:

| task | length | {head} |
| --- | --- |{" --- |" * depths}
{rows}
"""
