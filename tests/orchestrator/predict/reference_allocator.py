"""torch's caching allocator again, as plainly as it can be said: lists that are searched from end to end."""

from dataclasses import dataclass, field

from orchestrator.predict.allocator.address_space import AddressSpace
from orchestrator.predict.allocator.settings import AllocatorSettings

MiB = 2**20
FREE, TAKEN, UNMAPPED = "free", "taken", "unmapped"


@dataclass(eq=False)
class Range:
    size: int
    state: str
    since: int = 0


@dataclass(eq=False)
class Segment:
    address: int
    pieces: list[Range]
    is_small: bool
    page: int | None  # of an expandable one

    def where(self, piece: Range) -> int:
        before = 0
        for other in self.pieces:
            if other is piece:
                return self.address + before
            before += other.size
        raise AssertionError("not a piece of this segment")

    def put(self, piece: Range, *instead: Range) -> None:
        at = self.pieces.index(piece)
        self.pieces[at : at + 1] = [new for new in instead if new.size]


@dataclass
class ReferenceAllocator:
    settings: AllocatorSettings
    allowed: int | None
    device: int | None
    segments: list[Segment] = field(default_factory=list)
    searches: int = 0
    space: AddressSpace = field(default_factory=AddressSpace)

    @property
    def allocated(self) -> int:
        return sum(p.size for s in self.segments for p in s.pieces if p.state == TAKEN)

    @property
    def reserved(self) -> int:
        return sum(p.size for s in self.segments for p in s.pieces if p.state != UNMAPPED)

    def allocate(self, requested: int) -> Range | None:
        """None: out of memory."""
        size = self.rounded(requested)
        is_small = size <= MiB
        wanted = (
            2 * MiB
            if is_small
            else self.settings.large_segment_bytes
            if size < 10 * MiB
            else up(size, 2 * MiB)
        )
        found = self.find(size, is_small)
        if found is None:
            self.collect()
            found = self.new(size, is_small, wanted)
        if found is None and self.release_oversize(size, is_small):
            found = self.new(size, is_small, wanted)
        if found is None:
            self.empty_cache()
            found = self.new(size, is_small, wanted)
        if found is None:
            return None
        segment, piece = found
        left = piece.size - size
        if is_small or self.settings.expandable_segments:
            split = left >= 512
        else:
            split = left > MiB and (
                self.settings.max_split_bytes is None or size < self.settings.max_split_bytes
            )
        taken = Range(size if split else piece.size, TAKEN)
        segment.put(piece, taken, Range(left if split else 0, FREE, self.searches))
        return taken

    def free(self, piece: Range) -> None:
        segment = next(s for s in self.segments if piece in s.pieces)
        piece.state = FREE
        piece.since = self.searches
        self.merge(segment, piece)

    def empty_cache(self) -> None:
        for _, piece in [*self.free_pieces(False), *self.free_pieces(True)]:
            segment = next(s for s in self.segments if piece in s.pieces)
            if segment.page is None and segment.pieces == [piece]:
                self.drop(segment)
        for segment in self.segments:
            if segment.page is None:
                continue
            for piece in [p for p in segment.pieces if p.state == FREE]:
                start = segment.where(piece) - segment.address
                begin, end = up(start, segment.page), (start + piece.size) // segment.page * segment.page
                if begin < end:
                    unmapped = Range(end - begin, UNMAPPED)
                    before = Range(begin - start, FREE, self.searches)
                    after = Range(start + piece.size - end, FREE, self.searches)
                    segment.put(piece, before, unmapped, after)
                    self.merge(segment, unmapped)
        self.segments = [s for s in self.segments if any(p.state != UNMAPPED for p in s.pieces)]

    def rounded(self, requested: int) -> int:
        divisions = 0
        if self.settings.roundup_power2_divisions and requested >= 512:
            interval = max(0, min(15, requested.bit_length() - 1 - 20))
            divisions = self.settings.roundup_power2_divisions[interval]
        if divisions > 1 and requested > 512 * divisions:
            return up(requested, 2 ** (requested.bit_length() - 1) // divisions)
        return max(512, up(requested, 512))

    def free_pieces(self, is_small: bool) -> list[tuple[Segment, Range]]:
        """By size, then address."""
        found = [(s, p) for s in self.segments if s.is_small == is_small for p in s.pieces if p.state == FREE]
        return sorted(found, key=lambda pair: (pair[1].size, pair[0].where(pair[1])))

    def find(self, size: int, is_small: bool) -> tuple[Segment, Range] | None:
        if not is_small:
            self.searches += 1
        fitting = [pair for pair in self.free_pieces(is_small) if pair[1].size >= size]
        if not fitting:
            return None
        chosen = 0
        if self.settings.expandable_segments:
            while chosen + 1 < len(fitting) and room(*fitting[chosen + 1]) < room(*fitting[chosen]):
                chosen += 1
        most = self.settings.max_split_bytes
        if most is not None:
            found = fitting[chosen][1].size
            if size < most <= found:
                return None
            if size >= most and found >= size + self.settings.max_non_split_rounding_bytes:
                return None
        return fitting[chosen]

    def new(self, size: int, is_small: bool, wanted: int) -> tuple[Segment, Range] | None:
        if self.allowed is not None and self.reserved + wanted > self.allowed:
            return None
        if self.settings.expandable_segments:
            return self.expand(size, is_small)
        if self.device is not None and self.reserved + wanted > self.device:
            return None
        piece = Range(wanted, FREE, self.searches)
        self.segments.append(Segment(self.space.take(wanted), [piece], is_small, None))
        return self.segments[-1], piece

    def expand(self, size: int, is_small: bool) -> tuple[Segment, Range] | None:
        """Map every unmapped page of the lowest range that can hold `size` bytes."""
        page = 2 * MiB if is_small else self.settings.large_segment_bytes
        place = self.lowest(size, is_small)
        if place is None:
            nothing = Range(2**40 // page * page, UNMAPPED)
            self.segments.append(Segment(2**45 + len(self.segments) * 2**40, [nothing], is_small, page))
            place = self.segments[-1], nothing
        segment, first = place
        start = segment.where(first)
        while True:
            piece = next(p for p in segment.pieces if segment.where(p) <= start < segment.where(p) + p.size)
            if piece.state == FREE and piece.size >= size:
                return segment, piece
            unmapped = (
                piece
                if piece.state == UNMAPPED
                else next(
                    p
                    for p in segment.pieces
                    if p.state == UNMAPPED and segment.where(p) == start + piece.size
                )
            )
            needed = min(start + size - segment.where(unmapped), unmapped.size)
            mapped = up(needed, page)
            if self.device is not None and self.reserved + mapped > self.device:
                return None
            backed = Range(mapped, FREE, self.searches)
            segment.put(unmapped, backed, Range(unmapped.size - mapped, UNMAPPED))
            self.merge(segment, backed)

    def lowest(self, size: int, is_small: bool) -> tuple[Segment, Range] | None:
        for segment in self.segments:
            if segment.page is None or segment.is_small != is_small:
                continue
            for at, piece in enumerate(segment.pieces):
                if piece.state != UNMAPPED:
                    continue
                first = at - 1 if at and segment.pieces[at - 1].state == FREE else at
                free = 0
                for other in segment.pieces[first:]:
                    if other.state == TAKEN:
                        break
                    free += other.size
                if free >= size:
                    return segment, segment.pieces[first]
        return None

    def merge(self, segment: Segment, piece: Range) -> None:
        at = segment.pieces.index(piece)
        first, last = at, at
        while first and segment.pieces[first - 1].state == piece.state:
            first -= 1
        while last + 1 < len(segment.pieces) and segment.pieces[last + 1].state == piece.state:
            last += 1
        size = sum(p.size for p in segment.pieces[first : last + 1])
        segment.pieces[first : last + 1] = [Range(size, piece.state, self.searches)]

    def release_oversize(self, size: int, is_small: bool) -> bool:
        most = self.settings.max_split_bytes
        if most is None:
            return False
        target = max(size, most)
        pairs = self.free_pieces(is_small)
        enough = [pair for pair in pairs if pair[1].size >= target]
        if enough and not self.settings.expandable_segments:
            self.drop(enough[0][0])
            return True
        released = 0
        for segment, piece in reversed([pair for pair in pairs if pair[1].size < target]):
            if released >= target or piece.size < most:
                break
            if segment.page is None:
                released += piece.size
                self.drop(segment)
        return released >= target

    def drop(self, segment: Segment) -> None:
        # A free block too large to be split is a whole segment: no request ever takes a part of it.
        assert [p.state for p in segment.pieces] == [FREE]
        self.space.give(segment.address, segment.pieces[0].size)
        self.segments.remove(segment)

    def collect(self) -> None:
        if self.allowed is None or not self.settings.garbage_collection_threshold:
            return
        over = self.reserved - int(self.settings.garbage_collection_threshold * self.allowed)
        while over > 0:
            whole = [(s, p) for s, p in self.free_pieces(False) if len(s.pieces) == 1]
            if not whole:
                return
            mean = sum(self.searches - p.since for _, p in whole) / len(whole)
            old = [(s, p) for s, p in whole if s.page is None and self.searches - p.since >= mean]
            if not old:
                return
            for segment, piece in old:
                over -= piece.size
                self.drop(segment)


def room(segment: Segment, piece: Range) -> int:
    at = segment.pieces.index(piece)
    behind = segment.pieces[at + 1] if at + 1 < len(segment.pieces) else None
    return piece.size + (behind.size if behind is not None and behind.state == UNMAPPED else 0)


def up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
