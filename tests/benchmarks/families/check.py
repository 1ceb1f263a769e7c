"""One family, asked everything: a tiny random model through the project's own loader and engines, on a CPU.

T tokens, B batch.
"""

import copy
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from tests.workers.engines.eager.tiny import cell
from tests.workers.engines.heard import Heard
from tests.workers.models.families import VOCAB, WINDOW, tiny_config
from workers.cell import ModelRef
from workers.engines import open_session
from workers.engines.eager.session import own_defaults
from workers.engines.session import ModeUnsupported
from workers.models import LoadError
from workers.models.config import one_line
from workers.models.coverage import COLUMNS, FamilyCoverage, causal_families
from workers.models.load import LoadedModel, load_model
from workers.rehearsal.kv_law import KvRehearsal
from workers.rehearsal.passes import NotRehearsable

#: From below the window to beyond it, one token at a time.
PROMPT, NEW = WINDOW - 6, 28
#: Where the models of a run were, which says nothing of them.
_FOLDER = re.compile(r"(random:)?\S*/(drawn|kept): ")
#: Of these many tokens every known cache keeps whole entries.
_WHOLE = 256
CPU = torch.device("cpu")
#: Of the largest logit: what another order of float32 sums may change, and a recurrence beside its parallel form.
_CLOSE = 1e-3


class Unlike(Exception):
    """The model ran, and a figure is not what it is elsewhere."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """`tracebacks`: what was raised that is no refusal, by column."""

    family: FamilyCoverage
    tracebacks: dict[str, str]


def check(model_type: str) -> Checked:
    """Ask `COLUMNS` of the family. One that does not load, or run baseline, is asked nothing else."""
    found = AskedFamily(model_type)
    asked: dict[str, Callable[[], None]] = {name: getattr(found, name) for name in COLUMNS}
    reasons: dict[str, str] = {}
    tracebacks: dict[str, str] = {}
    for column, ask in asked.items():
        if "loads" in reasons or "baseline" in reasons:
            reasons[column] = "it does not load" if "loads" in reasons else "it does not run baseline"
            continue
        try:
            ask()
        except (LoadError, ModeUnsupported, NotRehearsable, Unlike) as error:
            reasons[column] = _FOLDER.sub("", " ".join(str(error).split()))
        except Exception as error:
            reasons[column] = tracebacks[column] = one_line(error)
    family = FamilyCoverage(
        model_type=model_type,
        causal=model_type in causal_families(),
        architecture=found.architecture,
        reasons=reasons,
    )
    return Checked(family, tracebacks)


class AskedFamily:
    def __init__(self, model_type: str) -> None:
        self._model_type = model_type
        self._target: LoadedModel | None = None
        self._tokens: dict[str, torch.Tensor] = {}
        self._curve: dict[int, list[int]] = {}

    @property
    def architecture(self) -> str | None:
        return None if self._target is None else type(self._target.model).__name__

    @property
    def target(self) -> LoadedModel:
        assert self._target is not None
        return self._target

    @property
    def model(self) -> Any:
        return self.target.model

    def loads(self) -> None:
        """Drawn at random, and read again from the files that transformers writes of it."""
        with tempfile.TemporaryDirectory() as folder:
            drawn, kept = Path(folder) / "drawn", Path(folder) / "kept"
            self._config().save_pretrained(drawn)
            ref = ModelRef(target=f"random:{drawn}", dtype="float32")
            target = load_model(ref.target, ref, CPU)
            target.model.save_pretrained(kept)
            self._config().save_pretrained(kept)  # of the whole, where the model is a part
            self._target = load_model(str(kept), ModelRef(target=str(kept), dtype="float32"), CPU)
            self._target = dataclasses.replace(self._target, name=self._model_type)
            _compare_weights(target.model, self._target.model)

    def baseline(self) -> None:
        for batch in (1, 3):
            heard = Heard()
            ids_BT = self._generate("baseline", heard, batch=batch)
            self._curve[batch] = heard.kv_bytes
            if batch == 1:
                self._tokens["baseline"] = ids_BT
        self._compare(
            "baseline", self._true_tokens(), "generates other tokens than transformers' own generate"
        )

    def score(self) -> None:
        ids_T = text(PROMPT + NEW)
        asked = cell("baseline", workload="score", prompt=0, length=len(ids_T) - 1)
        buckets = open_session(asked, self.target, None).score(ids_T, Heard())
        total = sum(bucket.nll_sum for bucket in buckets)
        true = torch.nn.functional.cross_entropy(self._dense(ids_T)[:-1], ids_T[1:], reduction="sum")
        if not abs(total - float(true)) <= _CLOSE * abs(float(true)):
            raise Unlike(f"scores {total:.4f} nats, {float(true):.4f} in one pass")

    def logits(self) -> None:
        ids_T = text(PROMPT + NEW)
        asked = cell("baseline", workload="score", prompt=0, length=len(ids_T))
        rows_TV = open_session(asked, self.target, None).logits(ids_T)
        dense_TV = self._dense(ids_T)
        gap = float((rows_TV - dense_TV).abs().max() / dense_TV.abs().max())
        if not gap <= _CLOSE:
            raise Unlike(f"one token at a time its logits are {gap:.1e} from those in one pass")

    def kv_law(self) -> None:
        """Below, at and beyond the window, for one sequence and for three: the bytes by rehearsal are those counted."""
        rehearsal = KvRehearsal(self._config(), torch.float32)
        for batch, counted in self._curve.items():
            for read in (PROMPT + 1, WINDOW - 1, WINDOW, WINDOW + 1, PROMPT + NEW - 1):
                self._hold(counted[read - PROMPT], rehearsal.bytes_after(read, batch), read, batch)
            law = rehearsal.law(batch)
            line = law.constant_bytes + read * law.bytes_per_token
            if read > rehearsal.window and line != counted[read - PROMPT]:
                # A cache that keeps one entry for several tokens is on the line when none of them waits.
                line = law.constant_bytes + _WHOLE * law.bytes_per_token
                self._hold(self._counted(_WHOLE, batch), line, _WHOLE, batch)

    def _hold(self, counted: int, told: int, read: int, batch: int) -> None:
        if counted != told:
            sequences = "1 sequence" if batch == 1 else f"{batch} sequences"
            raise Unlike(
                f"{counted:,} bytes counted after {read} tokens of {sequences}, {told:,} by rehearsal"
            )

    def _counted(self, read: int, batch: int) -> int:
        heard = Heard()
        asked = cell("baseline", prompt=read - 1, length=2, batch=batch)
        open_session(asked, self.target, None).generate(text(read - 1).repeat(batch, 1), 2, heard)
        return heard.kv_bytes[-1]

    def speculation(self) -> None:
        ids_BT = self._generate("baseline+spec", Heard(), gamma=3)
        self._compare("baseline", ids_BT, "with a draft it generates other tokens")

    def streaming(self) -> None:
        self._generate("streaming", Heard())

    def graph(self) -> None:
        ids_BT = self._generate("baseline", Heard(), engine="graph")
        self._compare("baseline", ids_BT, "generates other tokens in the graph engine")

    def _config(self) -> PreTrainedConfig:
        try:
            return tiny_config(self._model_type)
        except Exception as error:
            raise LoadError(f"its config cannot be made: {one_line(error)}") from error

    def _generate(
        self, mode: str, heard: Heard, *, batch: int = 1, gamma: int | None = None, engine: str = "eager"
    ) -> torch.Tensor:
        asked = cell(mode, prompt=PROMPT, length=NEW, batch=batch, gamma=gamma, sinks=2, window=8)
        asked = dataclasses.replace(asked, engine=engine)  # type: ignore[arg-type]
        draft = dataclasses.replace(self.target, model=copy.deepcopy(self.model)) if gamma else None
        session = open_session(asked, self.target, draft)
        return session.generate(text(PROMPT).repeat(batch, 1), NEW, heard).ids_BT

    def _true_tokens(self) -> torch.Tensor:
        """transformers' own greedy `generate`, the end of text suppressed as the engine does."""
        with own_defaults(self.model):
            true_BT: torch.Tensor = self.model.generate(
                text(PROMPT)[None],
                do_sample=False,
                max_new_tokens=NEW,
                suppress_tokens=sorted(self.target.eos_ids) or None,
            )
        return true_BT[:, PROMPT:]

    def _compare(self, other: str, ids_BT: torch.Tensor, what: str) -> None:
        if not torch.equal(ids_BT[:1], self._tokens[other]):
            first = int((ids_BT[0] != self._tokens[other][0]).nonzero()[0])
            raise Unlike(f"{what}, from token {first} on")

    def _dense(self, ids_T: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            dense_TV: torch.Tensor = self.model(input_ids=ids_T[None], use_cache=False).logits[0]
        return dense_TV


def text(count: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(3))


def _compare_weights(drawn: torch.nn.Module, kept: torch.nn.Module) -> None:
    before, after = dict(drawn.named_parameters()), dict(kept.named_parameters())
    other = sorted(
        name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])
    )
    if before.keys() != after.keys() or other:
        absent = sorted(before.keys() ^ after.keys())
        raise Unlike(f"weights come back from their files changed: {', '.join((other or absent)[:2])}")
