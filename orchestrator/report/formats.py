"""Numbers as a person reads them. GiB = 2^30, MiB when small; thousands have separators; a missing value is a dash."""

GiB, MiB = 2**30, 2**20
NOTHING = "–"


def size(count: float | None) -> str:
    if count is None:
        return NOTHING
    if abs(count) >= GiB:
        return f"{count / GiB:,.2f} GiB"
    return f"{count / MiB:,.1f} MiB" if abs(count) >= MiB else f"{count / 1024:,.1f} KiB"


def card(budget_bytes: int | None, total_bytes: int | None = None) -> str:
    """`8 GiB`, `64 MiB`; None is the whole device."""
    if budget_bytes is None:
        return f"the whole device ({size(total_bytes)})" if total_bytes else "the whole device"
    whole, unit = (budget_bytes / GiB, "GiB") if budget_bytes >= GiB else (budget_bytes / MiB, "MiB")
    return f"{whole:,.2f}".rstrip("0").rstrip(".") + f" {unit}"


def count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}×"


def percent(value: float | None, digits: int = 1) -> str:
    """`value`: in per cent."""
    return NOTHING if value is None else f"{value:+.{digits}f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listing(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
