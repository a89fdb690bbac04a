"""Exports for Label Studio: tasks with predictions, and the labelling interface that takes them."""

import json
from collections.abc import Iterator
from urllib.parse import quote

from segcore.annotations import label_studio
from segcore.annotations.regions import regions_of
from tasks import storage
from tasks.results.export_formats.formats import Format, Lines, Picture, Written, class_names, colours

_LOCAL = "/data/local-files/?d=images/"
"""Where Label Studio serves files from: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is then the folder of the export."""


class LabelStudio(Format):
    """tasks.json and label_config.xml, and images/ on request."""

    def add(self, picture: Picture, written: Written) -> None:
        labels, export, row = picture.labels_of_photograph, self.export, picture.row
        if labels is None:
            written.tally["too_large"] += 1
            return
        if export.images_at is not None or export.with_photographs:
            address = f"{export.images_at or _LOCAL}{quote(picture.name)}"
        else:
            address = row["uri"]
        task = label_studio.task_of(
            regions_of(labels, picture.names, picture.scores),
            address=address,
            identity=row["image_id"],
            width=labels.shape[1],
            height=labels.shape[0],
            model_version=export.model_version,
            score=None if row["confidence"] is None else round(row["confidence"], 5),
            tolerance_px=export.tolerance_px,
        )
        written.lines[0].append(json.dumps(task))
        written.tally["annotations"] += len(task["predictions"][0]["result"])

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        config = label_studio.labelling_config(colours(self.export.record, class_names(self.export.record, classes)))
        storage.write_whole(self.destination / "label_config.xml", config.encode())
        storage.write_stream(self.destination / "tasks.json", _list(lines))


def _list(lines: Lines) -> Iterator[bytes]:
    yield b"["
    for number, line in enumerate(lines(0)):
        yield f"{',' if number else ''}\n{line}".encode()
    yield b"\n]\n"
