"""How the next tokens are found. To add a decoder: a value here, its function in each engine, its lines in `docs/modes.md`."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.modes.installed import DECODERS_GROUP, with_installed
from workers.modes.parameters import Speculation
from workers.modes.policy import Dash


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What a decoder says of itself.

    `name`: in the column `decoder`. `suffix`: what it adds to the name of a policy's mode.
    `parameters`: the type of what a cell carries for it, None: nothing. A decoder with `Speculation` proposes `gamma`
    tokens a round and has the target verify them in one pass.
    `needs_draft`: it proposes by a second model. `takes_oracle`: an injected acceptance replaces its proposals. `matches_plain`: its output must equal that of the plain decoder under
    the same policy, token for token. `largest_batch`: sequences that it decodes at a time, None: any number.
    `engines`: engine -> `module:function` that runs it there. `dash`: of its curves, None: drawn through.
    """

    name: str
    suffix: str
    engines: Mapping[str, str]
    parameters: type[Speculation] | None = None
    needs_draft: bool = False
    takes_oracle: bool = False
    matches_plain: bool = False
    largest_batch: int | None = None
    dash: Dash | None = None

    @property
    def verifies(self) -> bool:
        """Whether it reads several tokens in one pass and takes back those that it rejects."""
        return self.parameters is not None

    def rows(self, parameters: Speculation | None) -> int:
        """Tokens that one pass of the target reads while it decodes."""
        return 1 if parameters is None else parameters.gamma + 1


PLAIN = Decoder(
    name="plain",
    suffix="",
    engines={"eager": "workers.engines.eager.decoders:plain", "graph": "workers.engines.graph.decode:stages"},
)
#: A draft model proposes, the target verifies. Lossless. arXiv:2211.17192.
SPECULATIVE = Decoder(
    name="spec",
    suffix="+spec",
    engines={
        "eager": "workers.engines.eager.decoders:speculative",
        "graph": "workers.engines.graph.speculate:stages",
    },
    parameters=Speculation,
    needs_draft=True,
    takes_oracle=True,
    matches_plain=True,
    largest_batch=1,
    dash=(6, 3, 0),
)

DECODERS = with_installed((PLAIN, SPECULATIVE), DECODERS_GROUP, Decoder)
