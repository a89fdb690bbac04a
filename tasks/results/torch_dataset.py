"""The masks of a run as a map-style torch dataset."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from segcore.masks import decode_mask
from tasks.results.reading import Piece, Results

_READERS = 8


class MaskDataset(Dataset[tuple[str, torch.Tensor]]):
    """Identity and label map (H, W) uint8 of every image with a mask, by number, in the order of the files.

    Travels to the workers of a DataLoader. Reading in order touches each piece once; a shuffled reader reads a file of
    some 64 masks, or a row group of a compacted one, for each item: shuffle within windows where storage is far.
    """

    def __init__(self, results: Results) -> None:
        self.pieces = results.pieces
        self.image_ids: list[str] = []
        pieces, rows = [], []
        with ThreadPoolExecutor(_READERS) as pool:
            for number, table in enumerate(pool.map(_facts, self.pieces)):
                here = np.flatnonzero(table["error_kind"].is_null().to_numpy())
                self.image_ids += table["image_id"].take(pa.array(here)).to_pylist()
                pieces.append(np.full(len(here), number))
                rows.append(here)
        self._piece = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        self._row = np.concatenate(rows) if rows else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        data = _masks_of(self.pieces[self._piece[index]])[int(self._row[index])].as_py()
        return self.image_ids[index], torch.from_numpy(decode_mask(data))


def _facts(piece: Piece) -> pa.Table:
    return Results.read_piece(piece, ["image_id", "error_kind"])


@lru_cache(maxsize=2)
def _masks_of(piece: Piece) -> pa.ChunkedArray:
    return Results.read_piece(piece, ["mask"])["mask"]
