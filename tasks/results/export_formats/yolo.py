"""Exports for YOLO: a text file of polygons for each image, lists of train and val, data.yaml."""

import json

from segcore.annotations import polygons
from segcore.annotations.regions import regions_of
from segcore.datasets.division import divide
from tasks import storage
from tasks.results.export_formats.formats import (
    Format,
    Lines,
    Picture,
    Written,
    class_names,
    starts_with_background,
)
from tasks.storage import Location


class Yolo(Format):
    """labels/, data.yaml, train.txt and val.txt, and images/ on request.

    Classes are numbered from 0 on without background. Every tenth image or so is in val, by a digest of its name.
    """

    suffix = ".txt"
    names_files = True

    def add(self, picture: Picture, written: Written) -> None:
        labels, first = picture.labels_of_photograph, int(starts_with_background(self.export.record))
        if labels is None:
            written.tally["too_large"] += 1
            return
        size = [labels.shape[1], labels.shape[0]]
        number_of = {name: label - first for label, name in picture.names.items()}
        lines = []
        for region in regions_of(labels, picture.names):
            for points in polygons.traced(region.mask, self.export.tolerance_px or 0.0):
                # Enough digits for a hundredth of a px
                numbers = " ".join(f"{value:.6f}" for value in (points / size).ravel())
                lines.append(f"{number_of[region.name]} {numbers}\n")
        storage.write_whole(self.destination / f"labels/{picture.name}.txt", "".join(lines).encode(), durable=False)
        written.lines[0].append(picture.name)
        written.tally["annotations"] += len(lines)

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        names, first = class_names(self.export.record, classes), int(starts_with_background(self.export.record))
        told = "".join(
            f"  {k - first}: {json.dumps(name, ensure_ascii=False)}\n" for k, name in names.items() if k >= first
        )
        divided = divide(lines(0))
        for split in ("train", "val"):
            members = divided.get(split, divided["train"] if divided else [])
            text = "".join(f"./images/{name}.jpg\n" for name in members)
            storage.write_whole(self.destination / f"{split}.txt", text.encode())
        text = f"path: .\ntrain: train.txt\nval: val.txt\nnames:\n{told}"
        storage.write_whole(self.destination / "data.yaml", text.encode())

    def photograph_place(self, picture: Picture) -> Location:
        return self.destination / f"images/{picture.name}.jpg"
