"""The masks of a run as a map-style torch dataset."""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from segcore.masks import decode_mask
from tasks import storage
from tasks.results import Results
from tasks.storage import Location


class MaskDataset(Dataset[tuple[str, torch.Tensor]]):
    """Identity and label map (H, W) uint8 of every image with a mask, by number, in the order of the files.

    Travels to the workers of a DataLoader. Reading in order touches each file once; a shuffled reader reads a file of
    some 64 masks for each item, so shuffle within windows of files where storage is far.
    """

    def __init__(self, results: Results) -> None:
        self.places = [file.place for file in results.files]
        self.image_ids: list[str] = []
        files, rows = [], []
        for number, fragment in enumerate(results.dataset.get_fragments()):
            table = fragment.to_table(columns=["image_id", "error_kind"])
            here = np.flatnonzero(table["error_kind"].is_null().to_numpy())
            self.image_ids += table["image_id"].take(pa.array(here)).to_pylist()
            files.append(np.full(len(here), number))
            rows.append(here)
        self._file = np.concatenate(files) if files else np.empty(0, np.int64)
        self._row = np.concatenate(rows) if rows else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        data = _masks_of(self.places[self._file[index]])[int(self._row[index])].as_py()
        return self.image_ids[index], torch.from_numpy(decode_mask(data))


@lru_cache(maxsize=2)
def _masks_of(place: Location) -> pa.ChunkedArray:
    return pq.read_table(pa.BufferReader(storage.read_bytes(place)), columns=["mask"], partitioning=None)["mask"]
