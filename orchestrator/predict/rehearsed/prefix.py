"""What prompts have in common: the passes over their first whole chunks, replayed once and gone on from."""

from orchestrator.predict.rehearsed.run import RehearsedRun

#: A copy is kept where so much more of a prompt was read since the last one: of all cards, and of one.
_SHARE, _FINE_SHARE = 1 / 8, 1 / 64


class Prefix:
    """The passes of `run` over whole chunks, as far as they are asked for. `run` has no end of memory, and its allocator
    collects no garbage. `emulated`: the room of a run is what it is allowed, else what its device has.

    A run of a prompt is exact whatever its ids take: it begins where the runs of both prompts part at the latest.
    """

    def __init__(self, run: RehearsedRun, chunk: int, *, emulated: bool) -> None:
        self._endless = _Copies(run, run.prompt_tokens, chunk, _SHARE)
        self._chunk = chunk
        self._emulated = emulated
        self._limited: dict[int, _Copies] = {}  # by room: of the last one that was asked for

    def of(self, prompt_tokens: int, room: int | None, ids_of: int | None = None) -> RehearsedRun:
        """The run of a prompt, read up to its last whole chunk, or failed. `room`: bytes for its allocator; None: without
        end. `ids_of`: a prompt whose ids are as long; None: its own. Raises `NotRehearsable`.
        """
        whole = (prompt_tokens - 1) // self._chunk * self._chunk
        ids = prompt_tokens if ids_of is None else ids_of
        found = self._endless.at(whole, ids, room)
        assert found is not None  # the beginning suits all
        if room is None:
            return found.copy(prompt_tokens, ids).read(whole)
        if found.read_tokens == whole:
            return self._with(room, found.copy(prompt_tokens, ids))
        if room not in self._limited:
            start = self._with(room, found.copy(prompt_tokens, ids))
            self._limited = {room: _Copies(start, ids, self._chunk, _FINE_SHARE)}
        limited = self._limited[room]
        if limited.begin <= whole and (begun := limited.at(whole, ids)) is not None:
            return begun.copy(prompt_tokens, ids).read(whole)
        return self._with(room, found.copy(prompt_tokens, ids)).read(whole)

    def _with(self, room: int, run: RehearsedRun) -> RehearsedRun:
        if self._emulated:
            run.allocator.allowed_bytes = room
        else:
            run.allocator.device_bytes = room
        return run


class _Copies:
    """Copies of a run on its way through a prompt. `ids`: a prompt whose ids are as long as the run's."""

    def __init__(self, run: RehearsedRun, ids: int, chunk: int, share: float) -> None:
        self._run, self._ids, self._chunk, self._share = run, ids, chunk, share
        self._copies = [run.copy(run.prompt_tokens, ids)]
        self.begin = run.read_tokens

    def at(self, tokens: int, ids_of: int, room: int | None = None) -> RehearsedRun | None:
        """The latest that has read `tokens` at most, suits those ids, and met no end of `room` bytes. Not to be changed."""
        run = self._run
        while run.read_tokens < tokens and run.failure is None and _had(run, room):
            latest = self._copies[-1].read_tokens
            if run.read_tokens > latest and run.read_tokens >= latest * (1 + self._share):
                self._copies.append(run.copy(run.prompt_tokens, self._ids))
            run.read(run.read_tokens + self._chunk)
        latest_first = (run, *reversed(self._copies)) if run.failure is None else reversed(self._copies)
        return next(
            (
                copy
                for copy in latest_first
                if copy.read_tokens <= tokens and copy.suits(ids_of) and _had(copy, room)
            ),
            None,
        )


def _had(run: RehearsedRun, room: int | None) -> bool:
    return room is None or run.allocator.demand <= room
