"""Batches for a training, read from a prepared dataset and made ready while the device computes.

Which images come next follows from the step (`segcore/sampling.py`), how they look from seed, epoch and id
(`segcore/augment.py`); threads, caches and the number of workers change nothing but the speed.
"""

import collections
import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from segcore import images, sampling
from segcore.augment import View, augment, view_rng
from segcore.preprocessing import Preprocessing
from segcore.recipes import TrainRecipe
from segcore.sampling import Sample
from segcore.training import Batch, normalise
from segcore.voc import IGNORE_LABEL
from tasks import storage
from tasks.datasets import shards
from tasks.datasets.shards import RowGroup, Split
from tasks.errors import JobError
from tasks.storage import Location

STEPS_AHEAD = 2
"""Batches that are made ready before they are asked for."""


class SplitReader:
    """Random access to the images of a split.

    Row groups are kept as they are stored (JPEG and PNG), up to `cache_bytes`, the longest unused go first: VOC's
    10,582 images take about 1.3 GB and are read from the storage once.
    """

    def __init__(self, dataset: Location, split: Split, cache_bytes: int) -> None:
        self.dataset = dataset
        self.cache_bytes = cache_bytes
        index = shards.read_index(dataset, split)
        self.ids: list[str] = index.column("id").to_pylist()
        columns = zip(*(index.column(name).to_pylist() for name in ("path", "row_group", "row")), strict=True)
        self._places: list[tuple[str, int, int]] = list(columns)
        self._cache: collections.OrderedDict[tuple[str, int], pa.Table] = collections.OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._reading: dict[tuple[str, int], threading.Lock] = collections.defaultdict(threading.Lock)

    def __len__(self) -> int:
        return len(self.ids)

    def decoded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and mask (H, W) uint8 of one position. Raises JobError that names a bad one."""
        path, number, row = self._places[index]
        table = self._row_group(path, number)
        try:
            image = images.decode(table.column("image")[row].as_py()).image
            mask = np.array(Image.open(io.BytesIO(table.column("mask")[row].as_py())))
        except (images.ImageError, OSError) as error:
            raise JobError(f"{self.dataset.uri}: image {self.ids[index]} cannot be used: {error}.") from None
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise JobError(
                f"{self.dataset.uri}: the mask of {self.ids[index]} is {mask.dtype} {mask.shape}, "
                f"its image {image.shape[:2]}: prepare the dataset again."
            )
        return image, mask

    def _row_group(self, path: str, number: int) -> pa.Table:
        key = (path, number)
        with self._lock:
            reading = self._reading[key]
        with reading:  # One thread fetches, the others that want the same wait for it
            with self._lock:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    return self._cache[key]
            table = shards.read_row_group(self.dataset, RowGroup(path, number, 0), ["image", "mask"])
            with self._lock:
                self._cache[key] = table
                self._held += table.nbytes
                while self._held > self.cache_bytes and len(self._cache) > 1:
                    self._held -= self._cache.popitem(last=False)[1].nbytes
            return table


@dataclass(frozen=True)
class Teacher:
    """Class probabilities of another network for the images of a training."""

    rows: dict[str, int]
    """Row of each image id."""

    probabilities: np.ndarray
    """(N, C, h, w) uint8, 255 is 1; corners of the grid on corners of the image."""


def read_teacher(uri: str, num_classes: int) -> Teacher:
    """An npz file with `ids` and `probabilities`. Raises JobError where it is something else."""
    place = storage.locate(uri)
    with storage.explained(place):
        data = storage.read_bytes(place)
    try:
        with np.load(io.BytesIO(data)) as stored:
            ids, probabilities = stored["ids"], stored["probabilities"]
    except (ValueError, KeyError, OSError) as error:
        raise JobError(f"{uri} is no npz file with ids and probabilities: {error}.") from None
    if probabilities.dtype != np.uint8 or probabilities.ndim != 4 or probabilities.shape[:2] != (len(ids), num_classes):
        raise JobError(
            f"{uri} holds {probabilities.dtype} {probabilities.shape} for {len(ids)} ids; "
            f"expected uint8 ({len(ids)}, {num_classes}, h, w)."
        )
    return Teacher({str(name): row for row, name in enumerate(ids)}, probabilities)


class Loader:
    """The batches of one worker, in order; threads decode and augment the next ones meanwhile."""

    def __init__(
        self,
        reader: SplitReader,
        recipe: TrainRecipe,
        preprocessing: Preprocessing,
        teacher: Teacher | None,
        *,
        rank: int,
        num_workers: int,
        images_at_once: int,
        num_threads: int,
        device: torch.device,
    ) -> None:
        self.reader, self.recipe, self.preprocessing, self.teacher = reader, recipe, preprocessing, teacher
        self.rank, self.num_workers, self.images_at_once = rank, num_workers, images_at_once
        self.device = device
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="views")
        self._ahead: dict[int, list[Future[View]]] = {}

    def samples(self, step: int) -> list[Sample]:
        """The global batch of a step."""
        return sampling.batch_samples(step, self.recipe.batch_size, len(self.reader), self.recipe.seed)

    def batches(self, step: int) -> list[Batch]:
        """This worker's share of a step, in parts of `images_at_once` images, on the device.

        All workers have as many images and parts: where a batch cannot be shared evenly, a share that is one short is
        filled up with a view that says nothing.
        """
        for coming in range(step, min(step + STEPS_AHEAD + 1, self.recipe.iterations)):
            if coming not in self._ahead:
                share = sampling.share_of(self.samples(coming), self.rank, self.num_workers)
                self._ahead[coming] = [self._pool.submit(self._view, sample) for sample in share]
        views = [future.result() for future in self._ahead.pop(step)]
        if len(views) * self.num_workers < self.recipe.batch_size:
            views.append(_saying_nothing(views[-1]))
        size = self.images_at_once or len(views)
        return [self._batch(views[start : start + size]) for start in range(0, len(views), size)]

    def stop(self) -> None:
        """End the threads; what they have begun is thrown away."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _view(self, sample: Sample) -> View:
        image, mask = self.reader.decoded(sample.index)
        name = self.reader.ids[sample.index]
        soft = None
        if self.teacher is not None and name in self.teacher.rows:
            soft = self.teacher.probabilities[self.teacher.rows[name]]
        return augment(image, mask, self.recipe.augmentation, view_rng(self.recipe.seed, sample.epoch, name), soft)

    def _batch(self, views: Sequence[View]) -> Batch:
        pixels = torch.from_numpy(np.stack([view.image for view in views]))
        labels = torch.from_numpy(np.stack([view.mask for view in views]))
        if self.device.type == "cuda":
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        soft = inside = None
        if self.teacher is not None:
            empty = np.zeros((self.teacher.probabilities.shape[1], *views[0].inside.shape), np.float32)
            # An image that the teacher has not seen learns from its mask alone
            soft = torch.from_numpy(np.stack([empty if v.soft is None else v.soft for v in views]))
            inside = torch.from_numpy(np.stack([v.inside & (v.soft is not None) for v in views]))
            soft, inside = soft.to(self.device), inside.to(self.device)
        return Batch(
            normalise(pixels, self.preprocessing, self.device),
            labels.to(self.device, non_blocking=True),
            soft,
            inside,
        )


def _saying_nothing(view: View) -> View:
    """The same photograph without any label, so that it counts in no loss."""
    return View(view.image, np.full_like(view.mask, IGNORE_LABEL), None, np.zeros_like(view.inside))
