"""Parquet files that may be damaged: whatever Arrow raises of one becomes a sentence that names it and the remedy."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import storage, storage_faults
from tasks.errors import JobError
from tasks.storage import Location


def write_parquet(place: Location, table: pa.Table) -> None:
    """Write a small table as one file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_whole(place, buffer.getvalue())


def read_parquet(place: Location, remedy: str, columns: list[str] | None = None, filters: Any = None) -> pa.Table:
    """The table of a small file. Raises JobError where it is damaged, and what storage raises where it has none.

    columns, filters: as in `pyarrow.parquet.read_table`. remedy: what to do about damage, as the end of a sentence.
    """
    with naming_damage(place, remedy):
        data = pa.BufferReader(storage.read_bytes(place))
        return pq.read_table(data, columns=columns, filters=filters, partitioning=None)


@contextlib.contextmanager
def whole_parquet(place: Location, remedy: str) -> Iterator[None]:
    """Within, a file is opened and read. Raises JobError where it is damaged, or storage does not give it."""
    try:
        with naming_damage(place, remedy):
            yield
    except JobError:
        raise
    except Exception as error:
        raise JobError(storage_faults.explain(error, place)) from error


@contextlib.contextmanager
def naming_damage(place: Location, remedy: str) -> Iterator[None]:
    """The same for who deals with storage: raises JobError where the file is damaged, and lets all else pass.

    remedy: what to do about it, as the end of a sentence.
    """
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        raise JobError(f"{place.uri} is no whole Parquet file ({_said_of(error)}): {remedy}.") from None


def _is_damage(error: Exception) -> bool:
    """Whether it says something of the contents: Arrow raises nearly everything, plain OSErrors without number too."""
    if isinstance(error, JobError | MemoryError):
        return False
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        return False
    return type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "s3fs")


def _said_of(error: Exception) -> str:
    """What a reader complains of, in a few words that do nothing to a terminal."""
    lines = str(error).splitlines()
    reason = lines[0][:200].rstrip(".") if lines else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in reason)
