"""Train the model that finds what it read: `python -m jobs.training.train_retrieve --out DIR`.

The lessons are made as they are needed (`jobs.training.retrieval_text`); the haystack of real text is the running
Python's documentation, as far as the pocket pair was trained on it. No network. `--minutes` measures one step and takes
as many as fit; `--steps` repeats a training.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from jobs.training.card import Accuracy, RetrieveFacts, retrieve_card
from jobs.training.retrieval_text import STAGES, Lessons
from workers.retrieval.prompts import PromptWriter, frame_of, trials, write_all
from workers.text import builtin

CONTEXT, SEED = STAGES[-1].length, 0
TOKENIZER = Path(__file__).parents[2] / "workers/models/data/pocket"
#: What is reported: tasks, lengths, depths, samples of each.
TASKS, LENGTHS, DEPTHS, SAMPLES = (
    ("passkey", "single", "single-text", "several-keys"),
    (128, 256, 512, 1024),
    5,
    20,
)
#: A length beyond the trained context, reported too.
LONGEST = 2048


def build(hidden: int, layers: int, heads: int, vocabulary: int) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            vocab_size=vocabulary,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            use_parallel_residual=False,
            tie_word_embeddings=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def corpus_ids(tokenizer: PreTrainedTokenizerBase, *, held_out: bool) -> list[int]:
    """The documentation topics, held out or trained on, one after the other."""
    texts = (
        builtin.held_out_documents()
        if held_out
        else [text for name, text in sorted(topics.items()) if not builtin.held_out(name)]
    )
    return [
        id_ for text in texts for id_ in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ]


def loss_of(
    model: GPTNeoXForCausalLM, ids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean loss, and the share of the answers' tokens that are the likeliest ones."""
    logits = model(ids[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    wanted, right = weights[:, 1:].flatten(), ids[:, 1:].flatten()
    losses = functional.cross_entropy(logits, right, reduction="none")
    answers = wanted == 1
    found = (logits.argmax(-1) == right)[answers].float().mean()
    return (losses * wanted).sum() / wanted.sum(), found


@torch.no_grad()
def evaluate(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Sequence[int],
    lengths: Sequence[int],
    tasks: Sequence[str] = TASKS,
    seed: int = 1,
) -> list[Accuracy]:
    """Whether each token of the answer and of the full stop behind it is the likeliest one, which is what greedy decoding
    writes."""
    found = []
    device = next(model.parameters()).device
    for task in tasks:
        for length in lengths:
            writer = PromptWriter(frame_of(tokenizer), length, corpus)
            prompts, _ = write_all(writer, task, DEPTHS, SAMPLES, seed)
            asked = trials(task, DEPTHS, SAMPLES, seed)
            correct = [0] * DEPTHS
            for ids, question in zip(prompts, asked, strict=True):
                answer = tokenizer(f" {question.expected[0]}.", add_special_tokens=False)["input_ids"]
                whole = torch.tensor([[*ids.tolist(), *answer]], device=device)
                said = model(whole[:, :-1], use_cache=False).logits[0, -len(answer) :].argmax(-1)
                assert question.place is not None
                correct[round(question.place * (DEPTHS - 1))] += said.tolist() == answer
            found.append(Accuracy(task, length, tuple(correct), SAMPLES))
    return found


def tell(found: Sequence[Accuracy]) -> None:
    for row in found:
        shares = "  ".join(f"{correct / row.samples:6.1%}" for correct in row.correct)
        print(f"{row.task:14s} {row.length:6,d}  {shares}", flush=True)


def step_seconds(model: GPTNeoXForCausalLM, tokens: int) -> float:
    """Of one step at the full length, measured: the median of ten after three."""
    device = next(model.parameters()).device
    ids = torch.randint(1, 2000, (max(1, tokens // CONTEXT), CONTEXT + 1), device=device)
    times = []
    for _ in range(13):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss_of(model, ids, torch.ones(ids.shape, device=device))[0].backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    return sorted(times[3:])[5]


def train(
    model: GPTNeoXForCausalLM, lessons: Lessons, rate: float, loaders: int, tell_every: int, last_s: float
) -> int:
    """AdamW, warm-up and cosine. Return the steps that were taken: fewer than there are lessons after `last_s` seconds."""
    device = next(model.parameters()).device
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    steps = len(lessons)
    warmup = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 0.51 + 0.49 * math.cos(math.pi * n / steps))
    )
    started = time.perf_counter()
    model.train()
    batches = DataLoader(lessons, batch_size=None, shuffle=False, num_workers=loaders)
    for step, (ids, weights) in enumerate(batches, 1):
        ids, weights = ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value, found = loss_of(model, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        elapsed = time.perf_counter() - started
        if step % tell_every == 0 or step == steps:
            print(
                f"step {step:6d} of {steps:,}  length {ids.shape[1] - 1:5d}  loss {value.item():.3f}  answers {found.item():.1%}  {elapsed:.0f} s",
                flush=True,
            )
        if elapsed > last_s:
            break
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets pocket-retrieve/")
    parser.add_argument("--steps", type=int, help="default: as many as fit into --minutes")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=32_768, help="of one step")
    parser.add_argument("--loaders", type=int, default=4, help="processes that make lessons")
    parser.add_argument("--tell-every", type=int, default=200)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    held_out = corpus_ids(tokenizer, held_out=True)
    torch.manual_seed(SEED)
    model = build(arguments.hidden, arguments.layers, arguments.heads, len(tokenizer)).to(device)
    steps = arguments.steps
    if steps is None:
        one = step_seconds(model, arguments.tokens) * 1.15  # the optimizer, and the lessons themselves
        steps = max(100, int(arguments.minutes * 60 / one))
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps:,} steps, on {device}", flush=True
    )
    lessons = Lessons(tokenizer, corpus_ids(tokenizer, held_out=False), steps, arguments.tokens, SEED)
    started = time.perf_counter()
    taken = train(
        model, lessons, arguments.rate, arguments.loaders, arguments.tell_every,
        1.2 * 60 * arguments.minutes if arguments.steps is None else math.inf,
    )  # fmt: skip
    folder = arguments.out / "pocket-retrieve"
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = time.perf_counter() - started
    found = evaluate(model.float(), tokenizer, held_out, (*LENGTHS, LONGEST))
    facts = RetrieveFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.heads,
        context=CONTEXT,
        steps=taken,
        tokens=arguments.tokens,
        rate=arguments.rate,
        seed=SEED,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        seconds=seconds,
        accuracy=tuple(found),
    )
    (folder / "README.md").write_text(retrieve_card(facts))
    print("depth                 " + "  ".join(f"{place / (DEPTHS - 1):6.2f}" for place in range(DEPTHS)))
    tell(found)


if __name__ == "__main__":
    main()
