"""Train the pocket pair, target and distilled draft: `python -m jobs.train_pocket --out DIR`.

Data: CPython's documentation topics and the docstrings of its standard library (PSF licence), read from the running
Python's own sources: no network. `--corpus-out FILE` only writes them; `--corpus FILE` trains on such a file, so
that another machine trains on the same text. The same seed on the same device gives the same pair.
"""

import argparse
import ast
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from jobs import pocket_card
from workers.text import builtin

VOCABULARY, CONTEXT, BATCH, SEED = 2048, 512, 32, 0
END = "<|endoftext|>"
TARGET = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
DRAFT = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}


@dataclass(frozen=True)
class Corpus:
    """Documents by split; `validation` has two parts, since topics and docstrings differ in kind."""

    train: list[str]
    validation_topics: list[str]
    validation_docstrings: list[str]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(vars(self)).encode()).hexdigest()


def collect() -> Corpus:
    """Split topics by name, as the builtin corpus does, and modules by path; train on no held-out paragraph."""
    held_out: list[str] = []
    train = [text for name, text in sorted(builtin.topics.items()) if not builtin.held_out(name)]
    for module, text in _docstrings():
        (held_out if builtin.held_out(module) else train).append(text)
    topics = builtin.held_out_documents()
    unseen = {builtin.fingerprint(part) for text in topics + held_out for part in builtin.paragraphs(text)}
    kept = ([p for p in builtin.paragraphs(text) if builtin.fingerprint(p) not in unseen] for text in train)
    return Corpus(["\n\n".join(parts) for parts in kept if parts], topics, held_out)


def _docstrings() -> Iterator[tuple[str, str]]:
    """(module path, its docstrings in source order) for each module of the standard library that has any."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        if module.startswith(("site-packages/", "dist-packages/", "pydoc_data/")):
            continue
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError):  # the test suite holds files that are wrong on purpose
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        owners = sorted(
            (n for n in nodes if isinstance(n, documented)), key=lambda n: getattr(n, "lineno", 0)
        )
        fresh = [text for n in owners if (text := ast.get_docstring(n)) and text not in seen]
        seen.update(fresh)
        if fresh:
            yield module, "\n\n".join(fresh)


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """int64 [tokens]: the documents, each followed by the end-of-text token."""
    pieces = [tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in documents]
    return torch.tensor([token for piece in pieces for token in piece])


def build(shape: dict[str, int], dropout: float) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        **shape, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, rotary_pct=0.25, use_parallel_residual=True,
        hidden_dropout=dropout, attention_dropout=dropout, tie_word_embeddings=shape is DRAFT,
        bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config)


Loss = Callable[[GPTNeoXForCausalLM, torch.Tensor], torch.Tensor]


def next_token_loss(model: GPTNeoXForCausalLM, window_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(window_BT[:, :-1]).logits.float()
    return functional.cross_entropy(logits_BTV.flatten(0, 1), window_BT[:, 1:].flatten())


def distillation_loss(teacher: GPTNeoXForCausalLM) -> Loss:
    """KL(teacher || student) at every position: acceptance asks the draft to agree with the target, not the text."""

    def loss(student: GPTNeoXForCausalLM, window_BT: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            taught_BTV = teacher(window_BT[:, :-1]).logits.float().log_softmax(-1)
        said_BTV = student(window_BT[:, :-1]).logits.float().log_softmax(-1)
        return (
            functional.kl_div(said_BTV, taught_BTV, log_target=True, reduction="sum")
            / said_BTV[..., 0].numel()
        )

    return loss


@torch.no_grad()
def validate(model: GPTNeoXForCausalLM, ids_T: torch.Tensor, loss: Loss = next_token_loss) -> float:
    """Mean loss over disjoint windows of the trained context."""
    windows = ids_T[: len(ids_T) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    model.eval()
    losses = [loss(model, batch) * len(batch) for batch in windows.split(BATCH)]
    return float(sum(losses) / len(windows))


@dataclass(frozen=True)
class Trained:
    model: GPTNeoXForCausalLM
    steps: int
    best_step: int
    validation: float
    seconds: float


def train(
    model: GPTNeoXForCausalLM,
    loss: Loss,
    train_T: torch.Tensor,
    held_T: torch.Tensor,
    steps: int,
    rate: float,
) -> Trained:
    """AdamW, warm-up and cosine, random crops of the concatenated documents; the best validated weights are kept."""
    started = time.perf_counter()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * n / steps)))
    )
    best, best_step, best_weights = math.inf, 0, {}
    offsets = torch.arange(CONTEXT + 1)
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_T) - CONTEXT, (BATCH, 1), generator=generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(model, train_T[(starts + offsets).to(device)])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            held = validate(model, held_T, loss)
            print(f"step {step:5d}  train {value.item():.3f}  validation {held:.3f}", flush=True)
            if held < best:
                best, best_step = held, step
                best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)
    return Trained(model.eval(), steps, best_step, best, time.perf_counter() - started)


@torch.no_grad()
def acceptance(
    target: GPTNeoXForCausalLM, draft: GPTNeoXForCausalLM, held_T: torch.Tensor, gamma: int = 4
) -> float:
    """Accepted over drafted tokens in greedy decoding: 16 held-out prompts of 64 tokens, 192 new tokens each."""
    prompts_BT = held_T[: 16 * 512].view(16, 512)[:, :64]
    text_BT = target.generate(prompts_BT, attention_mask=torch.ones_like(prompts_BT), do_sample=False, use_cache=True,
                              max_new_tokens=192, min_new_tokens=192, pad_token_id=0)  # fmt: skip
    accepted = drafted = 0
    for text_T in text_BT:
        position = 64
        while position + gamma <= len(text_T):
            context_1T = text_T[None, :position]
            said_1T = draft.generate(context_1T, attention_mask=torch.ones_like(context_1T), do_sample=False,
                                     max_new_tokens=gamma, min_new_tokens=gamma, use_cache=True, pad_token_id=0)  # fmt: skip
            right = (
                (said_1T[0, position:] == text_T[position : position + gamma]).int().cumprod(0).sum().item()
            )
            accepted, drafted = accepted + right, drafted + gamma
            position += right + 1
    return accepted / drafted


@torch.no_grad()
def nll_by_position(model: GPTNeoXForCausalLM, ids_T: torch.Tensor, bucket: int = 512) -> list[float]:
    """Mean negative log-likelihood (nats) per bucket of positions, all earlier tokens visible: full KV."""
    logits_TV = model(ids_T[None, :-1]).logits[0].float()
    losses_T = functional.cross_entropy(logits_TV, ids_T[1:], reduction="none")
    return [part.mean().item() for part in losses_T.split(bucket)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for pocket/ and pocket-draft/")
    parser.add_argument("--corpus", type=Path, help="train on this file instead of the running Python's text")
    parser.add_argument("--corpus-out", type=Path, help="write the text there, and stop")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of the target; the draft takes half as many again"
    )
    arguments = parser.parse_args()
    corpus = Corpus(**json.loads(arguments.corpus.read_text())) if arguments.corpus else collect()
    if arguments.corpus_out:
        arguments.corpus_out.write_text(json.dumps(vars(corpus)))
        return
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer(corpus.train)
    train_T, topics_T, docstrings_T = (
        encode(tokenizer, part).to(device)
        for part in (corpus.train, corpus.validation_topics, corpus.validation_docstrings)
    )
    held_T = torch.cat([topics_T, docstrings_T])
    print(
        f"{len(train_T):,} training tokens, {len(topics_T):,} + {len(docstrings_T):,} validation tokens, on {device}"
    )
    torch.manual_seed(SEED)
    target = train(build(TARGET, 0.1).to(device), next_token_loss, train_T, held_T, arguments.steps, 1e-3)
    draft = train(
        build(DRAFT, 0.0).to(device),
        distillation_loss(target.model),
        train_T,
        held_T,
        arguments.steps * 3 // 2,
        2e-3,
    )
