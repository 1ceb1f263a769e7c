"""Sizes and durations as a person reads them: one way for every room."""

KiB, MiB, GiB = 2**10, 2**20, 2**30


def size_text(count: float) -> str:
    """`1.50 GiB`, `24.0 MiB`, `3.5 KiB`: bytes in the largest unit that they fill."""
    if abs(count) >= GiB:
        return f"{count / GiB:,.2f} GiB"
    if abs(count) >= MiB:
        return f"{count / MiB:,.1f} MiB"
    return f"{count / KiB:,.1f} KiB" if abs(count) >= KiB else f"{count:,.0f} B"


def round_size_text(count: int) -> str:
    """`8 GiB`, `64 MiB`, `1.5 GiB`: bytes as a person wrote them, without zeros at the end."""
    number, unit = size_text(count).split()
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def duration_text(seconds: float) -> str:
    """`63.9 ms`, `7.5 s`, `1 min 15 s`, `2 h 05 min`."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
