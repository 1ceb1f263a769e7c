"""Numbers as the report shows them. Thousands have separators; a missing value is a dash."""

from workers.units import duration_text, round_size_text, size_text

NOTHING = "–"


def size(count: float | None) -> str:
    return NOTHING if count is None else size_text(count)


def card(budget_bytes: int | None, total_bytes: int | None = None) -> str:
    """`8 GiB`, `64 MiB`; None is the whole device."""
    if budget_bytes is None:
        return f"the whole device ({size(total_bytes)})" if total_bytes else "the whole device"
    return round_size_text(budget_bytes)


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
    return NOTHING if seconds is None else duration_text(seconds)


def energy(joules_per_token: float | None) -> str:
    """Of a million tokens."""
    if joules_per_token is None:
        return NOTHING
    joules = 1e6 * joules_per_token
    unit, name = next(((u, n) for u, n in ((1e6, "MJ"), (1e3, "kJ")) if joules >= u), (1.0, "J"))
    return f"{joules / unit:,.3g} {name}"


def listing(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
