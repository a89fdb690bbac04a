"""Exports as COCO's object annotations: run lengths or polygons of every region."""

import json
from collections.abc import Iterator

from segcore.annotations import coco
from segcore.annotations.regions import BACKGROUND
from tasks import storage
from tasks.results.export_formats.formats import Format, Lines, Picture, Written


class Coco(Format):
    """annotations.json, and images/ on request."""

    def add(self, picture: Picture, written: Written) -> None:
        # Ids are functions of the row's number in the run, so that fragments need no counter
        row, number = picture.row, picture.number + 1
        image = {
            "id": number,
            "file_name": f"images/{picture.name}" if self.export.with_photographs else row["image_id"],
            "width": row["mask_width"],
            "height": row["mask_height"],
            "uri": row["uri"],
            "identity": row["image_id"],
        }
        written.lines[0].append(json.dumps(image))
        if (labels := picture.labels) is None:
            written.tally["too_large"] += 1
            return
        segmentations = coco.segmentations_of(labels, self.export.tolerance_px)
        for found in row["classes"]:
            if _is_background(found["name"], found["index"]):
                continue
            box = found["box"]
            annotation = {
                "id": number * self.export.ids_per_image + found["index"],
                "image_id": number,
                "category_id": found["index"],
                "segmentation": segmentations[found["index"]],
                "area": found["pixels"],
                "bbox": [box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"]],
                "iscrowd": 0,
                "score": round(found["confidence"], 5),
            }
            written.lines[1].append(json.dumps(annotation))
            written.tally["annotations"] += 1

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        storage.write_stream(self.destination / "annotations.json", self._document(classes, lines))

    def _document(self, classes: dict[int, str], lines: Lines) -> Iterator[bytes]:
        """annotations.json, streamed: fragments are read twice rather than held."""
        export = self.export
        about = {"description": f"run {export.run_id} of model {export.record.get('model')}", "version": "1.0"}
        categories = [
            {"id": label, "name": name, "supercategory": ""}
            for label, name in classes.items()
            if not _is_background(name, label)
        ]
        yield f'{{"info": {json.dumps(about)},\n"licenses": [],\n"categories": {json.dumps(categories)}'.encode()
        for which, name in enumerate(("images", "annotations")):
            yield f',\n"{name}": ['.encode()
            for number, line in enumerate(lines(which)):
                yield f"{',' if number else ''}\n{line}".encode()
            yield b"]"
        yield b"}\n"


def _is_background(name: str, label: int) -> bool:
    return label == 0 and name == BACKGROUND
