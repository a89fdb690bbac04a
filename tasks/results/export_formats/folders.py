"""Exports as a palette PNG for each mask: a tree of them, and the layout of PASCAL VOC."""

import json

from segcore import voc
from tasks import storage
from tasks.results.export_formats.formats import Format, Lines, Picture, Written, class_names, copy
from tasks.storage import Location

NAMES = "names.jsonl"
"""Which file is of which image: a JSON object with name, image_id and uri a line."""


class PngTree(Format):
    """The masks in the tree of the source."""

    suffix = ".png"
    names_files = True
    takes_photographs = False
    masks = ""
    """Folder of the masks."""

    def add(self, picture: Picture, written: Written) -> None:
        row, folder = picture.row, self.destination / self.masks if self.masks else self.destination
        if picture.beside is None:
            storage.write_whole(folder / f"{picture.name}.png", row["mask"], durable=False)
        else:
            copy(picture.beside, folder / f"{picture.name}.tif")
        written.lines[0].append(picture.name)
        written.lines[1].append(json.dumps({"name": picture.name, "image_id": row["image_id"], "uri": row["uri"]}))

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        text = _labelmap(class_names(self.export.record, classes))
        storage.write_whole(self.destination / "labelmap.txt", text.encode())
        storage.write_stream(self.destination / NAMES, (f"{line}\n".encode() for line in lines(1)))


class VocLayout(PngTree):
    """JPEGImages, SegmentationClass, ImageSets."""

    takes_photographs = True
    masks = "SegmentationClass"

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        sets = self.destination / "ImageSets/Segmentation"
        storage.write_stream(sets / "all.txt", (f"{line}\n".encode() for line in lines(0)))
        super().finish(classes, lines)

    def photograph_place(self, picture: Picture) -> Location:
        return self.destination / f"JPEGImages/{picture.name}.jpg"


def _labelmap(names: dict[int, str]) -> str:
    """Each class with its colour in the palette: `name:red,green,blue::`, CVAT's form."""
    palette = voc.palette(max([256, *(label + 1 for label in names)]))
    lines = []
    for label, name in names.items():
        red, green, blue = palette[label]
        plain = " ".join("".join(c if c.isprintable() and c not in ":#" else " " for c in name).split())
        lines.append(f"{plain or f'class {label}'}:{red},{green},{blue}::")
    return "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n"
