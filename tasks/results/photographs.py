"""The photographs behind the rows of a run, read again from where they were."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage
from tasks.archive.entry_bytes import read_entries
from tasks.archive.stored_content import StoredContent
from tasks.errors import JobError
from tasks.results.reading import Results
from tasks.storage import Location


class Photographs:
    """Reads photographs of one run; what cannot be had any more is an ImageError that says why."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def read(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
        """What `decode` takes of each row's photograph, in order; an ImageError that says why where it is gone.

        rows: with image_id and uri. Where they have mask_file, a photograph whose mask is there is `StoredContent`.
        """
        # A file of its own stands under its URI; a member of a container, an image within a file, or a name that is no
        # text, in the manifest
        hidden = [row["image_id"] for row in rows if any(mark in row["uri"] for mark in ("!/", "#", "\\x"))]
        entries = self.results.output.entries(self.results.record, hidden) if hidden else {}
        for contained, group in itertools.groupby(rows, key=lambda row: row["image_id"] in entries):
            if not contained:
                for row in group:
                    yield row, self._read_plain(row["uri"], in_slices=row.get("mask_file") is not None)
                continue
            # Together, so that a tar shard is opened once
            together = list(group)
            try:
                outcomes = [
                    data for _, data in read_entries(self._source(), [entries[r["image_id"]] for r in together])
                ]
            except JobError as error:
                outcomes = [ImageError(ErrorKind.UNREADABLE, str(error))] * len(together)
            yield from zip(together, outcomes, strict=True)

    def _source(self) -> Location:
        return storage.locate(str((self.results.record.get("job") or {}).get("source") or self.results.output.uri))

    @staticmethod
    def _read_plain(uri: str, in_slices: bool) -> bytes | StoredContent | ImageError:
        try:
            if in_slices:
                return StoredContent.of(storage.locate(uri))
            return storage.read_bytes(storage.locate(uri))
        except FileNotFoundError:
            return ImageError(ErrorKind.MISSING, "the photograph is not there any more")
        except Exception as error:  # Whatever a store raises: the gallery goes on without this one
            return ImageError(ErrorKind.UNREADABLE, f"the photograph cannot be read ({type(error).__name__})")
