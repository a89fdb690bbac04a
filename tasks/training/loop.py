"""What each worker of a training does: batches in, steps, now and then a validation and a checkpoint.

Ray Train starts `train_on_worker` on every worker with torch.distributed initialised, and again after a worker was
lost; the newest checkpoint says where to go on. The first worker alone writes.
"""

import contextlib
import io
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import ray.train.torch
import torch
from torch import distributed

from segcore.learning import losses, sampling
from segcore.learning.recipes import TrainRecipe
from segcore.learning.training import NonFiniteLossError, StepReport, Trainer, new_network
from segcore.metrics import evaluation
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.preprocessing import Preprocessing
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams
from tasks import storage
from tasks.datasets.shards import Split
from tasks.models.remote import load_model
from tasks.storage import Location
from tasks.training import checkpoints
from tasks.training.data import Loader, SplitReader, Teacher, read_teacher

_TOLD_EVERY_S = 1.0


@dataclass(frozen=True)
class LoopConfig:
    """Everything that a worker needs, resolved from the job by the driver."""

    output: Location
    dataset: Location
    recipe: TrainRecipe
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split | None
    validation_images: int
    inference: InferenceParams
    initial: str | None
    teacher: str | None
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    images_at_once: int
    num_threads: int
    cache_bytes: int
    compiled: bool
    use_gpu: bool
    measure_steps: int
    """Steps to measure without writing anything; 0 trains."""
    mailbox: Any
    """Handle of a `Mailbox`."""


@ray.remote(num_cpus=0)
class Mailbox:
    """What the workers have to say to the driver: how far they are, and why they had to stop."""

    def __init__(self) -> None:
        self._news: list[dict[str, Any]] = []
        self._failure: str | None = None

    def tell(self, news: dict[str, Any]) -> None:
        """Leave a message."""
        self._news.append(news)

    def take(self) -> list[dict[str, Any]]:
        """Messages since the last call."""
        news, self._news = self._news, []
        return news

    def fail(self, reason: str) -> None:
        """The training cannot go on, and trying again would not help; the first reason counts."""
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Why it cannot go on; None where it can."""
        return self._failure


@dataclass
class Progress:
    """What a training has seen so far; part of every checkpoint."""

    best_step: int | None = None
    """Step of the best validation."""

    best_mean_iou: float = -1.0
    """Its mean IoU, 0 to 1."""

    seconds: float = 0.0
    """Spent in steps, by all sessions whose work was kept."""


def train_on_worker(settings: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the last step. settings: {"config": LoopConfig}."""
    config: LoopConfig = settings["config"]
    if ray.get(config.mailbox.failure.remote()) is not None:
        return
    try:
        _Loop(config).run()
    except NonFiniteLossError as error:
        # Every worker has met it, so all of them simply end
        ray.get(config.mailbox.fail.remote(str(error)))
    except torch.OutOfMemoryError:
        share = config.recipe.batch_size // ray.train.get_context().get_world_size()
        ray.get(
            config.mailbox.fail.remote(
                f"The device has no memory for {config.images_at_once or share} images at once: "
                "choose fewer (images_at_once), whose gradients are then added up."
            )
        )
        raise
    except ValueError as error:
        # The data or the job is at fault, not a machine: the restart that follows finds this and ends
        ray.get(config.mailbox.fail.remote(str(error)))
        raise


class _Loop:
    def __init__(self, config: LoopConfig) -> None:
        self.config = config
        self.rank = ray.train.get_context().get_world_rank()
        self.num_workers = ray.train.get_context().get_world_size()
        torch.set_num_threads(config.num_threads)
        self.device = ray.train.torch.get_device() if config.use_gpu else torch.device("cpu")
        initial = None
        start = checkpoints.checkpoint_steps(config.output)[-1:] if not config.measure_steps else []
        if config.initial is not None and not start:
            initial = load_model(config.initial).module.state_dict()
        network = new_network(config.recipe, len(config.classes), config.preprocessing, initial)
        recipe = config.recipe
        self.reader = SplitReader(config.dataset, config.train, config.cache_bytes)
        drawn = class_weights = None
        if recipe.draw_power or recipe.loss.class_power:
            pixels = self.reader.class_pixels(len(config.classes))
            drawn = sampling.drawing_weights(pixels, recipe.draw_power) if recipe.draw_power else None
            if recipe.loss.class_power:
                # As they are met: rare images are drawn more often
                shares = pixels / pixels.sum(1, keepdims=True).clip(1)
                met = shares.mean(0) if drawn is None else drawn @ shares
                class_weights = losses.class_weights(met, recipe.loss.class_power)
        self.trainer = Trainer(recipe, network, self.device, class_weights=class_weights, compiled=config.compiled)
        self.progress = Progress()
        if start:
            state = checkpoints.read_checkpoint(config.output, start[0])
            self.trainer.load_state_dict(state["trainer"])
            self.progress = Progress(**state["progress"])
        teacher: Teacher | None = None
        if recipe.loss.teacher_share:
            assert config.teacher is not None, "checked by the driver"
            teacher = read_teacher(config.teacher, len(config.classes))
        self.loader = Loader(
            self.reader,
            config.recipe,
            config.preprocessing,
            teacher,
            rank=self.rank,
            num_workers=self.num_workers,
            images_at_once=config.images_at_once,
            num_threads=max(2, config.num_threads),
            device=self.device,
            drawn=drawn,
        )
        self.rows: list[dict[str, Any]] = []
        self.first_row = self.trainer.step
        self.told = 0.0

    def run(self) -> None:
        config, last = self.config, self.config.recipe.iterations
        if config.measure_steps:
            last = min(last, config.measure_steps)
        elif self.trainer.step == 0:
            self._checkpoint()  # What a restart of this very session finds, whatever becomes of the initial weights
        begun = {"step": self.trainer.step, "resumed": self.trainer.step > 0, "workers": self.num_workers}
        self._tell(begun, now=True)
        with contextlib.closing(_Stopping(self.loader)):
            while self.trainer.step < last:
                self._step()
                step = self.trainer.step
                if config.measure_steps:
                    continue
                validates = config.validation is not None and (step % config.validate_every == 0 or step == last)
                if validates:
                    self._validate()
                if validates or step % config.checkpoint_every == 0 or step == last:
                    self._checkpoint()

    def _step(self) -> None:
        began = time.perf_counter()
        step = self.trainer.step
        batches = self.loader.batches(step)
        loaded = time.perf_counter()
        try:
            report = self.trainer.train_step(batches)
        except NonFiniteLossError as error:
            names = ", ".join(self.reader.ids[sample.index] for sample in self.loader.samples(step))
            newest = max(checkpoints.checkpoint_steps(self.config.output), default=0)
            raise NonFiniteLossError(
                f"{error} Its batch: {names}. The checkpoint of step {newest} is from before; {self._remedy()}."
            ) from None
        ended = time.perf_counter()
        self.progress.seconds += ended - began
        row = _row(step, self.config.recipe.batch_size, report, loaded - began, ended - began)
        self.rows.append(row)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _peak_bytes()
        self._tell({**row, "step": step + 1, "peak_bytes": peak}, now=bool(self.config.measure_steps))

    def _remedy(self) -> str:
        recipe = self.config.recipe
        ways = ["a smaller learning rate"]
        if recipe.precision == "bf16":
            ways.append("precision fp32")
        if recipe.initial and self.config.initial is None:
            ways.append(f"initial weights (the recipe's rate is for {recipe.initial})")
        return f"try {', or '.join(ways)}"

    def _validate(self) -> None:
        """Full-image evaluation on the first images of the split, each worker on its share; never a centre crop."""
        config = self.config
        assert config.validation is not None, "asked only where there is one"
        card = ModelCard(config.recipe.model, config.classes, config.preprocessing, dict(config.recipe.options))
        model = LoadedModel(self.trainer.evaluation_network(), card, digest="")
        predictor = Predictor(model, PredictParams(config.inference, crf=None), device=str(self.device))
        reader = SplitReader(config.dataset, config.validation, config.cache_bytes)
        counts = np.zeros((len(config.classes), evaluation.NUM_COUNTS), np.int64)
        for index in range(self.rank, min(config.validation_images, len(reader)), self.num_workers):
            image, truth = reader.decoded(index)
            labels = predictor.segment(predictor.prepare(image)).mask
            counts += evaluation.count_pixels(truth, labels, len(config.classes))
        total = torch.from_numpy(counts).to(self.device)
        if self.num_workers > 1:
            distributed.all_reduce(total)
        summed = total.cpu().numpy()
        # A class that none of these few images holds says nothing but that it was seen where it is not
        per_class = np.where(summed[:, 1] > 0, evaluation.iou(summed), np.nan)
        mean = float(np.nanmean(per_class))
        if mean > self.progress.best_mean_iou:
            self.progress.best_step, self.progress.best_mean_iou = self.trainer.step, mean
        found = {"mean_iou": mean, "iou": [None if np.isnan(value) else float(value) for value in per_class]}
        self.rows[-1] |= found
        self._tell({"step": self.trainer.step, **found}, now=True)

    def _checkpoint(self) -> None:
        if self.rank == 0:
            step, output = self.trainer.step, self.config.output
            if self.rows:
                name = f"steps-{self.first_row:08d}-{step:08d}.parquet"
                storage.write_whole(output / "metrics" / name, metrics_file(self.rows))
            state = {"trainer": self.trainer.state_dict(), "progress": asdict(self.progress)}
            checkpoints.write_checkpoint(output, step, state)
            checkpoints.remove_old(output, self.config.keep_checkpoints, self.progress.best_step)
        self.rows, self.first_row = [], self.trainer.step

    def _tell(self, news: dict[str, Any], *, now: bool) -> None:
        if self.rank == 0 and (now or time.monotonic() - self.told > _TOLD_EVERY_S):
            self.told = time.monotonic()
            self.config.mailbox.tell.remote(news)


class _Stopping:
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def close(self) -> None:
        self.loader.stop()


METRICS = pa.schema(
    [
        pa.field("step", pa.int64(), metadata={"description": "from 0"}),
        pa.field("images", pa.int64(), metadata={"description": "of the step, of all workers"}),
        pa.field("loss", pa.float64(), metadata={"description": "weighted sum of all losses"}),
        pa.field("losses", pa.map_(pa.string(), pa.float64()), metadata={"description": "each loss, unweighted"}),
        pa.field("learning_rates", pa.map_(pa.string(), pa.float64()), metadata={"description": "of each group"}),
        pa.field("gradient_norm", pa.float64(), metadata={"description": "before clipping; null where none is"}),
        pa.field("seconds", pa.float64(), metadata={"description": "of the first worker, whole step"}),
        pa.field("seconds_data", pa.float64(), metadata={"description": "spent waiting for the batch"}),
        pa.field("seconds_forward", pa.float64()),
        pa.field("seconds_backward", pa.float64()),
        pa.field("seconds_step", pa.float64(), metadata={"description": "exchange, optimiser, moving average"}),
        pa.field("mean_iou", pa.float64(), metadata={"description": "validation after the step, 0 to 1"}),
        pa.field("iou", pa.list_(pa.float64()), metadata={"description": "by class; null for one that no image holds"}),
    ]
)
"""Columns of `metrics.parquet`: one row a step."""


def _row(step: int, images: int, report: StepReport, waited_s: float, whole_s: float) -> dict[str, Any]:
    return {
        "step": step,
        "images": images,
        "loss": report.loss,
        "losses": report.losses,
        "learning_rates": report.learning_rates,
        "gradient_norm": report.gradient_norm,
        "seconds": whole_s,
        "seconds_data": waited_s,
        **{f"seconds_{name}": value for name, value in report.seconds.items()},
        "mean_iou": None,
        "iou": None,
    }


def metrics_file(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    maps = ("losses", "learning_rates")
    table = pa.Table.from_pylist([{**row, **{name: list(row[name].items()) for name in maps}} for row in rows], METRICS)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
