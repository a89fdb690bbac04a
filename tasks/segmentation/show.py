"""One photograph, segmented and shown at once: no archive is made."""

import http.client
import shlex
import urllib.parse
import urllib.request
from pathlib import PurePosixPath

from pydantic import BaseModel

from segcore.images.errors import ImageError
from tasks import storage
from tasks.errors import JobError
from tasks.models.remote import local_model
from tasks.segmentation.archive_job import ArchiveJob

_PATIENCE_S = 30.0
_MOST_BYTES = 256 << 20
"""Of a photograph from the web."""


class ShowReport(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What is in the photograph."""

    photograph: str
    picture: str
    """Where the picture was written."""

    mask: str | None
    model: str
    width: int
    height: int
    """Size of the mask in pixels."""

    shares: dict[str, float]
    """Share of the pixels of each class in the mask, 0 to 1, greatest first, background last."""

    note: str
    """What in the file was damaged; empty where nothing was."""


def picture_name(photograph: str) -> str:
    """Where the picture goes if nobody says: NAME-overlay.png in the current folder."""
    if "://" in photograph:
        photograph = urllib.parse.unquote(photograph.partition("?")[0]).replace("?", "-")
    name = PurePosixPath(photograph.partition("?")[0].replace("\\\\", "/")).stem
    return f"{name or 'photograph'}-overlay.png"


def show_photograph(job: ArchiveJob, to: str, mask: str | None = None) -> ShowReport:
    """Segment one photograph, the source of the job, as the archive would, and write its picture.

    to: picture of the photograph with its classes in colour. mask: PNG for the mask itself. The job's output is not
    used. Raises JobError where something cannot be read or written.
    """
    import segcore

    data = _read(job.source)
    try:
        segmenter = segcore.load(local_model(job.model), untrained=job.untrained, seed=job.seed, params=job.predict)
        found = segmenter.segment(data)
    except ImageError as error:
        raise JobError(f"{job.source} cannot be segmented: {error}") from None
    except ValueError as error:
        raise JobError(str(error)) from None
    for path, overlay in ((to, True), (mask, False)):
        if path is not None:
            try:
                found.save(path, overlay=overlay)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error).removesuffix(".")
                raise JobError(f"Cannot write {path}: {reason}.") from None
    height, width = found.labels.shape
    pixels = sorted(found.pixels().items(), key=lambda item: item[0] == "background")
    shares = {name: count / found.labels.size for name, count in pixels}
    return ShowReport(
        photograph=job.source,
        picture=to,
        mask=mask,
        model=segmenter.model.name,
        width=width,
        height=height,
        shares=shares,
        note=found.photograph.note,
    )


def _read(photograph: str) -> bytes:
    """The bytes of a file, an object, or what a web address has."""
    if photograph.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(photograph, timeout=_PATIENCE_S) as answer:
                data: bytes = answer.read(_MOST_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise JobError(f"{photograph} cannot be fetched: {error}.") from None
        if len(data) > _MOST_BYTES:
            raise JobError(f"{photograph} has more than {_MOST_BYTES >> 20} MiB; fetch it and give its path.")
        return data
    place = storage.locate(photograph)
    with storage.explained(place):
        try:
            return storage.read_bytes(place)
        except FileNotFoundError:
            raise JobError(f"{photograph} does not exist.") from None
        except IsADirectoryError:
            raise JobError(
                f"{photograph} is a folder: `segment-archive run {shlex.quote(str(photograph))}` segments it."
            ) from None
