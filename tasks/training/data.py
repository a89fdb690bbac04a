"""Batches for a training, read from a prepared dataset and made ready while the device computes.

Which images come next follows from the step (`segcore/learning/sampling.py`), how they look from seed, epoch and id
(`segcore/learning/augment.py`); threads and caches change nothing but the speed, and the number of workers only which
views of a batch CutMix and copy-paste find beside each other.
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

from segcore.images import decoding
from segcore.images.errors import ImageError
from segcore.learning import sampling
from segcore.learning.augment import AugmentParams, View, augment, view_rng
from segcore.learning.recipes import TrainRecipe
from segcore.learning.sampling import Sample
from segcore.learning.training import Batch, cut_mix, normalise, paste_objects
from segcore.models.preprocessing import Preprocessing
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
            image = decoding.decode(table.column("image")[row].as_py()).image
            mask = np.array(Image.open(io.BytesIO(table.column("mask")[row].as_py())))
        except (ImageError, OSError) as error:
            raise JobError(f"{self.dataset.uri}: image {self.ids[index]} cannot be used: {error}.") from None
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise JobError(
                f"{self.dataset.uri}: the mask of {self.ids[index]} is {mask.dtype} {mask.shape}, "
                f"its image {image.shape[:2]}: prepare the dataset again."
            )
        return image, mask

    def class_pixels(self, num_classes: int) -> np.ndarray:
        """Pixels of each class in each image: (N, num_classes) int64; every mask is read once."""

        counts = np.empty((len(self), num_classes), np.int64)
        for index, (path, number, row) in enumerate(self._places):
            mask = np.asarray(Image.open(io.BytesIO(self._row_group(path, number).column("mask")[row].as_py())))
            counts[index] = np.bincount(mask.ravel(), minlength=256)[:num_classes]
        return counts

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
    """(N, C, h, w) uint8, 255 is 1; corners of the grid on corners of the image. Classes that an image cannot hold may
    be set to 0."""

    shares: np.ndarray | None = None
    """(N,) float32: its share of the target of each image; None: the recipe's for all."""


def read_teacher(uri: str, num_classes: int) -> Teacher:
    """An npz file with `ids`, `probabilities` and perhaps `shares`. Raises JobError where it is something else."""
    place = storage.locate(uri)
    with storage.explained(place):
        data = storage.read_bytes(place)
    try:
        with np.load(io.BytesIO(data)) as stored:
            ids, probabilities = stored["ids"], stored["probabilities"]
            shares = stored["shares"].astype(np.float32) if "shares" in stored else None
    except (ValueError, KeyError, OSError) as error:
        raise JobError(f"{uri} is no npz file with ids and probabilities: {error}.") from None
    if probabilities.dtype != np.uint8 or probabilities.ndim != 4 or probabilities.shape[:2] != (len(ids), num_classes):
        raise JobError(
            f"{uri} holds {probabilities.dtype} {probabilities.shape} for {len(ids)} ids; "
            f"expected uint8 ({len(ids)}, {num_classes}, h, w)."
        )
    if shares is not None and (shares.shape != (len(ids),) or not ((shares >= 0) & (shares <= 1)).all()):
        raise JobError(f"The shares in {uri} must be one number from 0 to 1 for each of its {len(ids)} ids.")
    return Teacher({str(name): row for row, name in enumerate(ids)}, probabilities, shares)


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
        drawn: np.ndarray | None = None,
    ) -> None:
        """drawn: (N,) how often each image is drawn, for recipes with a `draw_power`; None: each once an epoch."""
        self.drawn = drawn
        self.reader, self.recipe, self.preprocessing, self.teacher = reader, recipe, preprocessing, teacher
        self.rank, self.num_workers, self.images_at_once = rank, num_workers, images_at_once
        self.device = device
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="views")
        self._ahead: dict[int, list[Future[View]]] = {}

    def samples(self, step: int) -> list[Sample]:
        """The global batch of a step."""
        size, seed = self.recipe.batch_size, self.recipe.seed
        if self.drawn is not None:
            return sampling.drawn_samples(step, size, self.drawn, seed)
        return sampling.batch_samples(step, size, len(self.reader), seed)

    def batches(self, step: int) -> list[Batch]:
        """This worker's share of a step, in parts of `images_at_once` images, on the device.

        All workers have as many images and parts: where a batch cannot be shared evenly, a share that is one short is
        filled up with a view that says nothing.
        """
        for coming in range(step, min(step + STEPS_AHEAD + 1, self.recipe.iterations)):
            if coming not in self._ahead:
                share = sampling.share_of(self.samples(coming), self.rank, self.num_workers)
                self._ahead[coming] = [
                    self._pool.submit(self._view, sample, self.recipe.views(coming)) for sample in share
                ]
        views = [future.result() for future in self._ahead.pop(step)]
        samples = sampling.share_of(self.samples(step), self.rank, self.num_workers)
        if len(views) * self.num_workers < self.recipe.batch_size:
            views.append(_saying_nothing(views[-1]))
            samples.append(samples[-1])
        size = self.images_at_once or len(views)
        parts = [slice(start, start + size) for start in range(0, len(views), size)]
        batches = [self._batch(views[part], samples[part]) for part in parts]
        for batch in batches:
            self._mix(batch, step)
        return batches

    def stop(self) -> None:
        """End the threads; what they have begun is thrown away."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _mix(self, batch: Batch, step: int) -> None:
        """CutMix or copy-paste among the views of a part, as the phase has it; the same for all parts of a step."""
        phase = self.recipe.phase(step)
        if phase is None:
            return
        rng = np.random.default_rng([self.recipe.seed, step, 3])
        if rng.random() < phase.cut_mix:
            cut_mix(batch, rng)
        elif rng.random() < phase.copy_paste:
            paste_objects(batch)

    def _view(self, sample: Sample, params: AugmentParams) -> View:
        image, mask = self.reader.decoded(sample.index)
        name = self.reader.ids[sample.index]
        soft = None
        if self.teacher is not None and name in self.teacher.rows:
            soft = self.teacher.probabilities[self.teacher.rows[name]]
        return augment(image, mask, params, view_rng(self.recipe.seed, sample.epoch, name), soft)

    def _batch(self, views: Sequence[View], samples: Sequence[Sample]) -> Batch:
        pixels = torch.from_numpy(np.stack([view.image for view in views]))
        labels = torch.from_numpy(np.stack([view.mask for view in views]))
        if self.device.type == "cuda":
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        soft = inside = shares = None
        if self.teacher is not None:
            empty = np.zeros((self.teacher.probabilities.shape[1], *views[0].inside.shape), np.float32)
            # An image that the teacher has not seen learns from its mask alone
            soft = torch.from_numpy(np.stack([empty if v.soft is None else v.soft for v in views])).to(self.device)
            inside = torch.from_numpy(np.stack([v.inside & (v.soft is not None) for v in views])).to(self.device)
            each = torch.tensor([self._share(sample) for sample in samples], dtype=torch.float32)
            shares = each.reshape(-1, 1, 1).repeat(1, *inside.shape[1:]).to(self.device)
        return Batch(
            normalise(pixels, self.preprocessing, self.device),
            labels.to(self.device, non_blocking=True),
            soft,
            inside,
            shares,
        )

    def _share(self, sample: Sample) -> float:
        """The teacher's share of the target of an image."""
        teacher = self.teacher
        assert teacher is not None, "asked only where there is one"
        row = teacher.rows.get(self.reader.ids[sample.index])
        if teacher.shares is None or row is None:
            return self.recipe.loss.teacher_share
        return float(teacher.shares[row])


def _saying_nothing(view: View) -> View:
    """The same photograph without any label, so that it counts in no loss."""
    return View(view.image, np.full_like(view.mask, IGNORE_LABEL), None, np.zeros_like(view.inside))
