"""Exports for `datasets` of Hugging Face: Parquet with image and mask columns, which it reads as pictures."""

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.images.masks import encode_mask
from tasks import storage
from tasks.results.export_formats.formats import Format, Lines, Picture, Written, class_names, upright_jpeg

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
    "image_id": {"dtype": "string", "_type": "Value"},
    "uri": {"dtype": "string", "_type": "Value"},
    "classes": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "confidence": {"dtype": "float32", "_type": "Value"},
    "model": {"dtype": "string", "_type": "Value"},
}
_TYPES = {
    "image": _PICTURE,
    "mask": _PICTURE,
    "image_id": pa.string(),
    "uri": pa.string(),
    "classes": pa.list_(pa.string()),
    "confidence": pa.float32(),
    "model": pa.string(),
}
_COMMON = (b"\xff\xd8\xff", b"\x89PNG")
"""What files of JPEG and PNG begin with; `datasets` turns them as EXIF says."""

_ROWS = 64
"""Rows of a group: what a reader holds at a time."""


class HuggingFace(Format):
    """data/*.parquet, and a README.md whose head `load_dataset` reads; masks are PNG whose values are labels."""

    needs_photographs = True

    def write(self, pictures: Iterable[Picture], piece: int) -> Written:
        """A Parquet file for each piece of the run. A photograph that cannot be read any more is null."""
        written, rows = Written(), []
        for picture in pictures:
            row, data = picture.row, picture.photograph
            labels = picture.labels_of_photograph
            if labels is None:
                written.tally["too_large"] += 1
                continue
            written.tally["photographs" if isinstance(data, bytes) else "photographs_missing"] += 1
            same = row["mask"] is not None and labels.shape == (row["mask_height"], row["mask_width"])
            rows.append(
                {
                    "image": {"bytes": _readable(data), "path": None} if isinstance(data, bytes) else None,
                    "mask": {"bytes": row["mask"] if same else encode_mask(labels), "path": None},
                    "image_id": row["image_id"],
                    "uri": row["uri"],
                    "classes": [found["name"] for found in row["classes"]],
                    "confidence": row["confidence"],
                    "model": row["model"],
                }
            )
        if rows:
            metadata = {"huggingface": json.dumps({"info": {"features": _FEATURES}})}
            table = pa.Table.from_pylist(rows, pa.schema(list(_TYPES.items()), metadata=metadata))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, row_group_size=_ROWS, compression="zstd")
            place = self.destination / f"data/part-{piece:06d}.parquet"
            storage.write_whole(place, sink.getvalue().to_pybytes(), durable=False)
        return written

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        names = class_names(self.export.record, classes)
        storage.write_whole(self.destination / "id2label.json", f"{json.dumps(names, indent=1)}\n".encode())
        head = "---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n"
        text = (
            f"{head}\nMasks of {self.export.model_version}. The pixel values of `mask` are labels, see id2label.json.\n"
        )
        storage.write_whole(self.destination / "README.md", text.encode())


def _readable(data: bytes) -> bytes:
    """A photograph as `datasets` can open it: its own bytes, where they are of a common format."""
    return data if data.startswith(_COMMON) else upright_jpeg(data)
