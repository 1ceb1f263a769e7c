"""One part of the journal: a Parquet file; its name carries the hash of its bytes, its footer the schema version."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from orchestrator.axes import AXES
from orchestrator.journal.errors import SchemaTooNew
from orchestrator.journal.record import SCHEMA, SCHEMA_VERSION

_NAME = re.compile(r"part-(\d{6,})(?:-by(\d{4,}))?-([0-9a-f]{16})\.parquet")
_VERSION_KEY, _COLUMNS_KEY, _ROWS_KEY = "oomline.schema_version", "oomline.columns", "oomline.rows"

#: From a version to the next: what turns a frame of the one into a frame of the other.
Migrations = Mapping[int, Callable[[pl.LazyFrame], pl.LazyFrame]]
MIGRATIONS: Migrations = {}


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is what its name says. `path`: a local file, perhaps a copy. `rows`: how many it holds."""

    name: str
    path: Path
    version: int
    rows: int


@dataclass(frozen=True, slots=True)
class BadPart:
    name: str
    reason: str


def encode(frame: pl.DataFrame, version: int = SCHEMA_VERSION) -> bytes:
    """The part that holds `frame`."""
    buffer = io.BytesIO()
    footer = {_VERSION_KEY: str(version), _ROWS_KEY: str(frame.height)}
    if frame.schema == SCHEMA:
        footer[_COLUMNS_KEY] = _COLUMNS
    frame.write_parquet(buffer, compression="lz4", statistics=False, metadata=footer)
    return buffer.getvalue()


def name_of(data: bytes, sequence: int, lease: int = 0) -> str:
    """What a part is called at place `sequence` of the journal, written under `lease` (0: a lock that has none)."""
    by = f"-by{lease:04d}" if lease else ""
    return f"part-{sequence:06d}{by}-{_digest(data)}.parquet"


def sequence_of(name: str) -> int:
    """Its place in the journal; 0 for a file that no journal wrote."""
    match = re.match(r"part-(\d{6,18})(?!\d)", name)
    return int(match[1]) if match else 0


def lease_of(name: str) -> int:
    """The lease that its writer held; 0 where the lock had none."""
    match = _NAME.fullmatch(name)
    return int(match[2] or 0) if match else 0


def fenced_off(names: Iterable[str]) -> set[str]:
    """Parts that came to the folder after their writer was passed: a holder of a higher lease wrote the same place of
    the journal, or an earlier one. It did not know of them, so they do not count.
    """
    passed: set[str] = set()
    highest = 0
    for name in sorted(names, key=lambda name: (sequence_of(name), -lease_of(name))):
        highest = max(highest, lease_of(name))
        if lease_of(name) < highest:
            passed.add(name)
    return passed


def check(name: str, path: Path) -> Part | BadPart:
    """Read the part whole and hold it against its name. Raises `SchemaTooNew` and nothing else."""
    match = _NAME.fullmatch(name)
    if match is None:
        return BadPart(name, "not a name that this journal gives")
    try:
        data = path.read_bytes()
    except OSError as error:
        return BadPart(name, f"cannot be read: {error.strerror}")
    if _digest(data) != match[3]:
        return BadPart(name, f"its {len(data):,} bytes are not those its name promises (torn or altered)")
    try:
        footer = pl.read_parquet_metadata(io.BytesIO(data))
        version = int(footer[_VERSION_KEY])
        rows = int(footer[_ROWS_KEY])
        fits = footer.get(_COLUMNS_KEY) == _COLUMNS or _fits(pl.read_parquet_schema(io.BytesIO(data)))
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
        return BadPart(name, f"not a part of a journal: {error}")
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{name} has schema version {version}, this oomline reads up to {SCHEMA_VERSION}: "
            "use the newer oomline"
        )
    if version == SCHEMA_VERSION and not fits:
        return BadPart(name, "its columns have other types than this journal's")
    return Part(name, path, version, rows)


def scan(parts: Sequence[Part], migrations: Migrations = MIGRATIONS) -> pl.LazyFrame:
    """All rows of `parts`, in order, columns `SCHEMA`; a column that a part lacks is null.

    A part without an axis is older than that axis: its cells have the usual value.
    """
    usual = [pl.col(axis.name).fill_null(axis.usual) for axis in AXES if axis.usual is not None]
    frames = [
        _scan_version([part for part in parts if part.version == version], version, migrations).with_columns(
            usual
        )
        for version in sorted({part.version for part in parts})
    ]
    if not frames:
        return pl.LazyFrame(schema=SCHEMA)
    return pl.concat(frames) if len(frames) > 1 else frames[0]


def _scan_version(parts: Sequence[Part], version: int, migrations: Migrations) -> pl.LazyFrame:
    paths = [part.path for part in parts]
    if version == SCHEMA_VERSION:
        return pl.scan_parquet(
            paths,
            schema=SCHEMA,
            missing_columns="insert",
            extra_columns="ignore",
            glob=False,
        )
    frame = pl.scan_parquet(paths, glob=False)
    for step in range(version, SCHEMA_VERSION):
        frame = migrations[step](frame)
    present = frame.collect_schema()
    return frame.select(
        *(
            pl.col(name).cast(dtype) if name in present else pl.lit(None, dtype).alias(name)
            for name, dtype in SCHEMA.items()
        ),
    )


def _fits(columns: Mapping[str, pl.DataType]) -> bool:
    return all(SCHEMA.get(column, dtype) == dtype for column, dtype in columns.items())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


#: A part that carries this has the columns of `SCHEMA`, and its own need not be parsed.
_COLUMNS = _digest(str(SCHEMA).encode())
