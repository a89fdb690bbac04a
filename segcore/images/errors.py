"""Why an image has no mask: the reasons, and the error that carries one."""

from enum import StrEnum


class ErrorKind(StrEnum):
    """Why an image has no mask. Stored in the column `error_kind`."""

    MISSING = "missing"
    """Listed, and gone when it was to be read."""
    UNREADABLE = "unreadable"
    """The storage, the tar shard or the Parquet file did not give the bytes."""
    CHANGED = "changed"
    """The bytes at this path are no longer the ones that were listed."""
    EMPTY = "empty"
    """No bytes."""
    UNSUPPORTED = "unsupported"
    """A kind of image that is not read here, such as a RAW file without its reader; the message has the remedy."""
    NOT_AN_IMAGE = "not_an_image"
    """No accepted format recognises the bytes."""
    TRUNCATED = "truncated"
    """The image ends too early."""
    CORRUPT = "corrupt"
    """A known format whose contents do not decode."""
    TOO_LARGE = "too_large"
    """More pixels than the bound, or a decompression bomb."""
    FAILED = "failed"
    """Decoded, but scoring or refinement failed."""
    CRASHED = "crashed"
    """Ends the process that touches it; tried alone before it was said."""
    TIMEOUT = "timeout"
    """Takes longer in one stage than an image may."""
    MEMORY = "memory"
    """Needs more memory than an image may, or than there is."""


class ImageError(ValueError):
    """An image that cannot be used: `kind` says which of the enumerated reasons, the message why."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ErrorKind, str]]:
        return (ImageError, (self.kind, str(self)))  # Exceptions with two arguments do not pickle by themselves
