"""An engine's passes at any length, from the few lengths at which they were rehearsed."""

from typing import Protocol

from workers.rehearsal.passes import Generation, NotRehearsable, PassFamily, PassTrace, Piece

#: A generation's steps are rehearsed at multiples of this many tokens.
_STEPS = 64
#: Prompts up to here are each rehearsed at their own length.
_SHORT = 1024
#: Beyond every text.
_FAR = 2**40


class EngineRehearsal(Protocol):
    """What `workers.rehearsal` offers for an engine."""

    weights: tuple[int, ...]

    def chunk(self, position: int, tokens: int) -> PassTrace: ...

    def scored(self, position: int, tokens: int) -> PassTrace: ...

    def start(self, prompt_tokens: int, *, read: bool) -> PassTrace: ...

    def generation(self, prompt_tokens: int, *, read: bool) -> Generation: ...

    def step(self, position: int) -> PassTrace: ...


class ScoredPasses:
    """Implements `run.Rehearsal` for a text that is scored `chunk` tokens at a time: a prompt, and nothing behind it."""

    def __init__(self, rehearsal: EngineRehearsal, chunk: int) -> None:
        self._rehearsal = rehearsal
        self._chunk = chunk
        self._others: dict[tuple[int, int], PassTrace] = {}
        self._family = PassFamily(lambda position: rehearsal.scored(position, chunk), chunk, chunk)

    @property
    def weights(self) -> tuple[int, ...]:
        return self._rehearsal.weights

    def chunk(self, position: int, tokens: int) -> PassTrace:
        if position and tokens == self._chunk:
            return self._family.at(position)
        if (position, tokens) not in self._others:
            self._others[position, tokens] = self._rehearsal.scored(position, tokens)
        return self._others[position, tokens]

    def start(self, prompt_tokens: int) -> PassTrace:
        return PassTrace((), (), (), ())

    def first(self, prompt_tokens: int) -> PassTrace:
        raise NotRehearsable("no token is new where a text is scored")

    def steps(self, prompt_tokens: int, step: int) -> Piece:
        raise NotRehearsable("no token is new where a text is scored")


class RehearsedPasses:
    """Implements `run.Rehearsal` for prompts that are read `chunk` tokens at a time, None: all at once.

    `grows`: the cache does, so that no two steps of a generation are alike.
    """

    def __init__(self, rehearsal: EngineRehearsal, chunk: int | None, *, grows: bool = True) -> None:
        self._rehearsal = rehearsal
        self._chunk = chunk
        self._chunks: dict[tuple[int, int], PassTrace] = {}
        self._family: PassFamily | None = None
        self._starts: dict[int, PassTrace] = {}
        self._generations: dict[int, Generation] = {}
        self._grows = grows
        # Behind a prompt that is in the caches already, passes follow a law as those of later steps do.
        self._has_law = grows and chunk is not None
        self._start_family = PassFamily(lambda tokens: self._generation(tokens).start, 1, _STEPS)
        self._first_family = PassFamily(lambda tokens: self._generation(tokens).first, 1, _STEPS)
        self._steps = PassFamily(self._step, 1, _STEPS)

    @property
    def weights(self) -> tuple[int, ...]:
        return self._rehearsal.weights

    def chunk(self, position: int, tokens: int) -> PassTrace:
        if position and tokens == self._chunk:
            if self._family is None:
                self._family = PassFamily(self._full_chunk, tokens, tokens)
            return self._family.at(position)
        if (position, tokens) not in self._chunks:
            self._chunks[position, tokens] = self._rehearsal.chunk(position, tokens)
        return self._chunks[position, tokens]

    def start(self, prompt_tokens: int) -> PassTrace:
        if self._has_law and prompt_tokens > _SHORT:
            return self._start_family.at(prompt_tokens)
        if prompt_tokens not in self._starts:
            self._starts[prompt_tokens] = self._rehearsal.start(prompt_tokens, read=self._chunk is not None)
        return self._starts[prompt_tokens]

    def first(self, prompt_tokens: int) -> PassTrace:
        if self._has_law and prompt_tokens > _SHORT:
            return self._first_family.at(prompt_tokens)
        return self._generation(prompt_tokens).first

    def steps(self, prompt_tokens: int, step: int) -> Piece:
        """The piece that holds the `step`-th pass behind the first, at position `prompt_tokens + step - 2`."""
        if self._grows:
            return self._steps.piece(prompt_tokens + step - 2)
        steady = self._generation(prompt_tokens).steady
        return Piece(0, _FAR, steady, steady)

    def _generation(self, prompt_tokens: int) -> Generation:
        if prompt_tokens not in self._generations:
            read = self._chunk is not None
            self._generations[prompt_tokens] = self._rehearsal.generation(prompt_tokens, read=read)
        return self._generations[prompt_tokens]

    def _full_chunk(self, position: int) -> PassTrace:
        assert self._chunk is not None
        return self._rehearsal.chunk(position, self._chunk)

    def _step(self, position: int) -> PassTrace:
        if self._has_law and position > _SHORT:
            return self._generation(position).steady
        return self._rehearsal.step(position)
