"""Exports as CVAT for images 1.1: one XML file, and the labels for the constructor of a project."""

import json
from collections.abc import Iterator

from segcore.annotations import cvat
from segcore.annotations.regions import regions_of
from tasks import storage
from tasks.results.export_formats.formats import Format, Lines, Picture, Written, class_names, colours


class Cvat(Format):
    """annotations.xml and labels.json, and images/ on request."""

    def add(self, picture: Picture, written: Written) -> None:
        labels = picture.labels_of_photograph
        if labels is None:
            written.tally["too_large"] += 1
            return
        regions = regions_of(labels, picture.names, picture.scores)
        element = cvat.image_of(
            regions,
            number=picture.number,
            name=picture.name,
            width=labels.shape[1],
            height=labels.shape[0],
            tolerance_px=self.export.tolerance_px,
        )
        written.lines[0].append(element)
        written.tally["annotations"] += element.count("<mask ") + element.count("<polygon ")

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        of_classes = colours(self.export.record, class_names(self.export.record, classes))
        labels = json.dumps(cvat.labels_of_project(of_classes), indent=1)
        storage.write_whole(self.destination / "labels.json", f"{labels}\n".encode())

        def document() -> Iterator[bytes]:
            yield cvat.header(of_classes, self.export.model_version).encode()
            yield from (element.encode() for element in lines(0))
            yield cvat.FOOTER.encode()

        storage.write_stream(self.destination / "annotations.xml", document())
