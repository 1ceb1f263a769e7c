import subprocess
import sys

import pytest

from workers.units import GiB, KiB, MiB, duration_text, round_size_text, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (3.5 * KiB, "3.5 KiB"),
        (24 * MiB, "24.0 MiB"),
        (1023.9 * MiB, "1,023.9 MiB"),
        (1.5 * GiB, "1.50 GiB"),
        (2000 * GiB, "2,000.00 GiB"),
        (-2 * MiB, "-2.0 MiB"),
    ],
)
def test_a_size_is_told_in_the_largest_unit_that_it_fills(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (8 * GiB, "8 GiB"),
        (64 * MiB, "64 MiB"),
        (100 * MiB, "100 MiB"),
        (GiB * 3 // 2, "1.5 GiB"),
        (500, "500 B"),
    ],
)
def test_a_budget_is_told_as_it_was_written(count: int, text: str) -> None:
    assert round_size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.0012, "1.2 ms"),
        (7.46, "7.5 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599.6, "1 h 00 min"),
        (3 * 3600 + 299, "3 h 04 min"),
    ],
)
def test_a_duration_is_told_in_units_that_a_person_reads(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_every_room_may_import_it_without_torch() -> None:
    code = "import sys, workers.units; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
