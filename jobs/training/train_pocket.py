"""Train the pocket pair, target and distilled draft: `python -m jobs.training.train_pocket --out DIR`.

The text is the running Python's own (`jobs.training.text`): no network. `--corpus-out FILE` only writes it; `--corpus
FILE` trains on such a file, so that a machine with another Python trains on the same text. The same seed on the same
kind of device gives the same pair. On an H200 target and draft take 37 and 59 s; two CPU cores need about 8 s for one
of the target's steps (an estimate from its processor time), so that an hour there is `--steps 200`.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from jobs.training import text
from jobs.training.card import Facts, card

VOCABULARY, CONTEXT, BATCH, SEED = 2048, 512, 32, 0
TARGET = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
DRAFT = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}

Loss = Callable[[GPTNeoXForCausalLM, torch.Tensor], torch.Tensor]  # of windows [batch, CONTEXT + 1]


@dataclass(frozen=True)
class Trained:
    model: GPTNeoXForCausalLM
    steps: int
    best_step: int
    seconds: float


def build(shape: dict[str, int], dropout: float) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        **shape,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        use_parallel_residual=True,
        tie_word_embeddings=shape is DRAFT,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """int64 [tokens]: the documents, each followed by the end-of-text token, so that endings are learnt."""
    pieces = (tokenizer(document, verbose=False)["input_ids"] for document in documents)
    return torch.tensor([token for piece in pieces for token in [*piece, tokenizer.eos_token_id]])


def next_token_loss(model: GPTNeoXForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    logits = model(windows[:, :-1], use_cache=False).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def distillation_loss(teacher: GPTNeoXForCausalLM) -> Loss:
    """KL(teacher || student): acceptance asks the draft to agree with the target, not with the text (arXiv:2310.08461)."""

    def loss(student: GPTNeoXForCausalLM, windows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            taught = teacher(windows[:, :-1], use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
        said = student(windows[:, :-1], use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
        return functional.kl_div(said, taught, log_target=True, reduction="batchmean")

    return loss


@torch.no_grad()
def validate(model: GPTNeoXForCausalLM, ids: torch.Tensor, loss: Loss = next_token_loss) -> float:
    """Mean loss over disjoint windows of the trained context."""
    model.eval()
    windows = ids[: len(ids) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    return sum(loss(model, part).item() * len(part) for part in windows.split(BATCH)) / len(windows)


def train(
    model: GPTNeoXForCausalLM, loss: Loss, ids: torch.Tensor, held_out: torch.Tensor, steps: int, rate: float
) -> Trained:
    """AdamW, warm-up and cosine, random crops of the concatenated documents; keeps the best validated weights."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(SEED)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 0.525 + 0.475 * math.cos(math.pi * n / steps))
    )
    best, best_step, best_weights = math.inf, 0, model.state_dict()
    offsets = torch.arange(CONTEXT + 1)
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(ids) - CONTEXT, (BATCH, 1), generator=generator)
        windows = ids[(starts + offsets).to(ids.device)]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
            value = loss(model, windows)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            held = validate(model, held_out, loss)
            print(f"step {step:5d}  training {value.item():.3f}  validation {held:.3f}", flush=True)
            if held < best:
                best, best_step = held, step
                best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)
    model.config.hidden_dropout = model.config.attention_dropout = 0.0
    return Trained(model.eval().to(torch.bfloat16), steps, best_step, time.perf_counter() - started)


@torch.no_grad()
def acceptance(
    target: GPTNeoXForCausalLM,
    draft: GPTNeoXForCausalLM,
    held_out: torch.Tensor,
    gamma: int = 4,
    prompts: int = 8,
    new_tokens: int = 128,
) -> float:
    """Accepted over drafted tokens in greedy decoding after held-out prompts of 64 tokens, spread over the text."""
    starts = torch.arange(prompts)[:, None] * (len(held_out) // prompts)
    accepted = drafted = 0
    for said in _greedy(target, held_out[(starts + torch.arange(64)).to(held_out.device)], new_tokens):
        position = 64
        while position + gamma <= len(said):
            proposed = _greedy(draft, said[None, :position], gamma)[0, position:]
            agreed = int((proposed == said[position : position + gamma]).int().cumprod(0).sum())
            accepted, drafted, position = accepted + agreed, drafted + gamma, position + agreed + 1
    return accepted / drafted


def _greedy(model: GPTNeoXForCausalLM, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
    )


@torch.no_grad()
def nll_by_position(model: GPTNeoXForCausalLM, ids: torch.Tensor, bucket: int) -> tuple[float, ...]:
    """Mean negative log-likelihood per bucket of positions with every earlier token visible."""
    logits = model(ids[None, :-1], use_cache=False).logits[0].float()
    losses = functional.cross_entropy(logits, ids[1:], reduction="none")
    return tuple(part.mean().item() for part in losses.split(bucket))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder that gets pocket/ and pocket-draft/")
    where.add_argument("--corpus-out", type=Path, help="write the text to this file and stop")
    parser.add_argument("--corpus", type=Path, help="train on this file, not on the running Python's text")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of the target; the draft takes twice as many"
    )
    parser.add_argument("--dropout", type=float, default=0.2, help="of the target; the draft has none")
    arguments = parser.parse_args()
    corpus = text.read(arguments.corpus) if arguments.corpus else text.collect()
    if arguments.corpus_out:
        corpus.write(arguments.corpus_out)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    tokenizer = text.train_tokenizer(corpus.train, VOCABULARY)
    splits = (corpus.train, corpus.validation_topics, corpus.validation_docstrings)
    ids, topics, docstrings = (encode(tokenizer, split).to(device) for split in splits)
    held_out = torch.cat([topics, docstrings])
    print(f"{len(ids):,} training and {len(held_out):,} validation tokens, on {device_name}", flush=True)

    torch.manual_seed(SEED)
    blank = build(TARGET, arguments.dropout).to(device)
    target = train(blank, next_token_loss, ids, held_out, arguments.steps, 1e-3)
    blank = build(DRAFT, 0.0).to(device)
    draft = train(blank, distillation_loss(target.model), ids, held_out, 2 * arguments.steps, 2e-3)

    rate = acceptance(target.model, draft.model, held_out)
    recipes = {
        "pocket": f"next-token loss, AdamW 1e-3, weight decay 0.1, dropout {arguments.dropout}",
        "pocket-draft": "distilled from `pocket` (forward KL at every position), AdamW 2e-3, weight decay 0.1",
    }
    for (name, recipe), trained in zip(recipes.items(), (target, draft), strict=True):
        facts = Facts(
            name=name,
            parameters=sum(p.numel() for p in trained.model.parameters()),
            recipe=recipe,
            steps=trained.steps,
            best_step=trained.best_step,
            seconds=trained.seconds,
            device=device_name,
            seed=SEED,
            training_tokens=len(ids),
            topics_loss=validate(trained.model, topics),
            docstrings_loss=validate(trained.model, docstrings),
            acceptance=rate,
            nll_by_position=nll_by_position(trained.model, topics[:8001], CONTEXT),
            bucket=CONTEXT,
        )
        folder = arguments.out / name
        trained.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(facts, corpus))
        print(facts, flush=True)


if __name__ == "__main__":
    main()
