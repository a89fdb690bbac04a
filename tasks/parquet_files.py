"""Parquet files that may be damaged: whatever Arrow raises of one becomes a sentence that names it and the remedy."""

import contextlib
from collections.abc import Iterator

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location


@contextlib.contextmanager
def whole_parquet(place: Location, remedy: str) -> Iterator[None]:
    """Within, a file is opened and read. Raises JobError where it is damaged, or storage does not give it."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:  # Of damaged files Arrow raises nearly everything, plain OSErrors without number too
        of_storage = isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None)
        if of_storage or type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "s3fs"):
            raise JobError(storage.explain(error, place)) from error
        lines = str(error).splitlines()
        reason = lines[0][:200].rstrip(".") if lines else type(error).__name__
        reason = "".join(c if c.isprintable() else "?" for c in reason)
        raise JobError(f"{place.uri} is no whole Parquet file ({reason}): {remedy}.") from None
