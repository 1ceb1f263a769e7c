"""What runs them in the eager engine."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from workers.cell import Cell
from workers.engines.eager.decoders import DecoderRun, Decoding


@contextmanager
def everything(model: PreTrainedModel, cell: Cell) -> Iterator[Cache]:
    """Every token, as `baseline` keeps it."""
    yield DynamicCache(config=model.config.get_text_config(decoder=True))


@contextmanager
def steady(run: DecoderRun) -> Iterator[Decoding]:
    """One token a pass."""
    yield Decoding()
