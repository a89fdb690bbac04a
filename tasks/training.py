"""Training: what is asked, what it resolves to, driving it on Ray Train, and what comes out.

    OUTPUT/training.json       what is trained, how it stands; its identity decides whether a session may go on with it
    OUTPUT/checkpoints/        see checkpoints.py
    OUTPUT/metrics/            rows of the steps between two checkpoints
    OUTPUT/metrics.parquet     all of them, at the end
    OUTPUT/curves.png          loss, learning rate, IoU
    OUTPUT/model/              the model directory, at the end

What a worker does is in `training_loop.py`, what a step does in `segcore/training.py`.
"""

import hashlib
import json
import subprocess
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, field_validator

from segcore import checkpoint, models, recipes
from segcore.card import ModelCard
from segcore.inference import InferenceParams
from segcore.recipes import TrainRecipe
from tasks import checkpoints, cluster, curves, progress, remote_models, shards, storage
from tasks.errors import JobError
from tasks.shards import DatasetManifest
from tasks.storage import Location

RECORD_VERSION = 1

_RECORD = "training.json"
_MEASURED_STEPS = 6
_POLL_S = 0.3
_SAY_EVERY_S = 10.0


class TrainJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to train, on what, and where to put it."""

    dataset: str
    """URI of a prepared dataset."""

    output: str
    """URI that checkpoints, metrics and the model are written under; one training each."""

    recipe: TrainRecipe = recipes.FAST_PSPNET18
    """A recipe in full, or the name of one."""

    split: str = "train_aug"
    """Split of the dataset to learn from."""

    validation_split: str = "val"
    """Split to validate on."""

    initial: str | None = None
    """Weights to start from: name of a model, path or URI of a model directory; layers that fit are taken."""

    teacher: str | None = None
    """URI of an npz file with `ids` and `probabilities`, for recipes that learn from a teacher."""

    iterations: Annotated[int, annotated_types.Ge(1)] | None = None
    """Steps, instead of the recipe's; the schedule, its stairs and its warm-up shrink or grow with them."""

    batch_size: Annotated[int, annotated_types.Ge(1)] | None = None
    """Global batch, instead of the recipe's; learning rate and iterations follow by the linear rule."""

    crop_px: Annotated[int, annotated_types.Interval(ge=9, le=4097)] | None = None
    """Side of the crops in px, instead of the recipe's: 8k + 1."""

    precision: Literal["fp32", "bf16"] | None = None
    """Number format of the forward pass, instead of the recipe's."""

    seed: Annotated[int, annotated_types.Ge(0)] | None = None
    """Instead of the recipe's."""

    num_workers: Annotated[int, annotated_types.Ge(0)] = 0
    """Workers of Ray Train; 0: one for each GPU, or one where there is none."""

    num_threads: Annotated[int, annotated_types.Ge(0)] = 0
    """CPU threads of each worker; 0: the free CPUs, shared evenly. A resumed training keeps its number, since sums in
    another order are other weights in the last bit."""

    images_at_once: Annotated[int, annotated_types.Ge(0)] = 0
    """Images of one forward pass on one worker; the gradients of the passes of a step are added up. 0: all at once."""

    validation_images: Annotated[int, annotated_types.Ge(0)] = 100
    """Images of each validation, the first of the split (whose order is drawn); 0 for none."""

    validate_every: Annotated[int, annotated_types.Ge(1)] = 1000
    """Steps between validations; there is one after the last step too."""

    checkpoint_every: Annotated[int, annotated_types.Ge(1)] = 500
    """Steps between checkpoints; there is one with each validation and after the last step too."""

    keep_checkpoints: Annotated[int, annotated_types.Ge(1)] = 3
    """The last so many are kept, and the best."""

    max_failures: Annotated[int, annotated_types.Ge(0)] = 3
    """How often the workers are started again after one of them was lost."""

    inference: InferenceParams = InferenceParams()
    """How validation scores its images: whole, never a centre crop."""

    cache_bytes: Annotated[int, annotated_types.Ge(0)] = 4 << 30
    """Most bytes of the dataset that each worker keeps in memory, as stored."""

    compiled: bool = False
    """Let torch.compile fuse the kernels; takes a minute or more at the start."""

    @field_validator("recipe", mode="before", json_schema_input_type=str | TrainRecipe)
    @classmethod
    def _named_recipe(cls, value: Any) -> Any:
        return recipes.recipe(value) if isinstance(value, str) else value


class TrainReport(BaseModel, frozen=True):
    """What came of a training."""

    output: str
    """Where everything is."""

    model: str
    """URI of the model directory."""

    variant: str
    """Which network it is."""

    steps: int
    """Of the whole training."""

    steps_now: int
    """Of this session; 0 when it was finished before."""

    resumed_from: int
    """Step that this session began with."""

    seconds: float
    """Of this session."""

    images_per_s: float
    """Of this session, in steps; 0 where there was none."""

    device_busy: float
    """Share of the time of the steps that was not spent waiting for data, 0 to 1."""

    loss: float
    """Mean over the last steps, at most 100."""

    mean_iou: float | None
    """Of the last validation, 0 to 1, over the classes that its images hold: of a subset, no score of the split."""

    best_mean_iou: float | None
    """Of the best validation."""

    restarts: int
    """How often workers were started again in this session."""


class GroupPlan(BaseModel, frozen=True):
    """Parameters that share a learning rate."""

    label: str
    tensors: int
    parameters: int
    learning_rate: float
    """At the first full step of the schedule."""


class TrainPlan(BaseModel, frozen=True):
    """What a training will do, measured over a few steps of it."""

    job: str
    """The recipe in a sentence."""

    groups: list[GroupPlan]
    """What trains."""

    frozen: int
    """Parameters that do not."""

    images: int
    """Of the split."""

    epochs: float
    """How often each is seen."""

    steps: int
    """Still to do."""

    num_workers: int
    device: str
    seconds_per_step: float
    images_per_s: float
    device_busy: float
    peak_bytes: int
    """Memory of the first worker: of the device, or of the process on a CPU."""

    seconds_left: float
    """Steps still to do at this speed; validations and checkpoints come on top."""

    dataset_bytes: int
    """Of the split, as stored."""


@dataclass(frozen=True)
class _Resolved:
    """A job with everything looked up."""

    job: TrainJob
    recipe: TrainRecipe
    output: Location
    manifest: DatasetManifest
    card: ModelCard
    """Of the model that will come out."""
    identity: dict[str, Any]
    """What decides the weights."""


@task(name="train", cache_policy=NO_CACHE)
def train(job: TrainJob) -> TrainReport:
    """Train from where OUTPUT stands to the last step, and write the model."""
    resolved = _resolve(job)
    output = resolved.output
    storage.require_writable(output)
    with storage.explained(output):
        record = _begin(resolved)
        if record.get("status") == "finished":
            return _report(resolved, record, start=resolved.recipe.iterations, seconds=0.0, restarts=0)
        start = max(checkpoints.checkpoint_steps(output), default=0)
    began = time.monotonic()
    with cluster.connected():
        restarts = _Driver(resolved, record).run()
    with storage.explained(output):
        record = _finish(resolved)
        return _report(resolved, record, start=start, seconds=time.monotonic() - began, restarts=restarts)


@task(name="plan-training", cache_policy=NO_CACHE)
def plan(job: TrainJob) -> TrainPlan:
    """What `train` would do: counted, and measured over a few steps whose work is thrown away."""
    resolved = _resolve(job)
    recipe = resolved.recipe
    with storage.explained(resolved.output):
        record = _read_record(resolved.output)
        _check_identity(resolved, record)
        start = max(checkpoints.checkpoint_steps(resolved.output), default=0)
    with cluster.connected():
        driver = _Driver(resolved, record, measure_steps=_MEASURED_STEPS)
        driver.run()
        num_workers, use_gpu = driver.num_workers, driver.use_gpu
    rows = [news for news in driver.news if "loss" in news]
    timed = rows[1:] or rows  # The first step warms caches up
    seconds = sum(row["seconds"] for row in timed) / len(timed)
    split = resolved.manifest.split(job.split)
    groups, frozen = _counted(recipe, len(resolved.manifest.classes))
    steps = recipe.iterations - start
    return TrainPlan(
        job=f"{recipe.model}, {recipe.iterations} steps of {recipe.batch_size} crops of "
        f"{recipe.augmentation.crop_px} px, {recipe.optimiser}, {recipe.schedule.kind}, {recipe.precision}",
        groups=groups,
        frozen=frozen,
        images=split.images,
        epochs=recipe.iterations * recipe.batch_size / split.images,
        steps=steps,
        num_workers=num_workers,
        device="GPU" if use_gpu else "CPU",
        seconds_per_step=seconds,
        images_per_s=recipe.batch_size / seconds,
        device_busy=1 - sum(row["seconds_data"] for row in timed) / sum(row["seconds"] for row in timed),
        peak_bytes=max(row["peak_bytes"] for row in rows),
        seconds_left=steps * seconds,
        dataset_bytes=sum(file.bytes for file in split.files),
    )


def describe_recipes() -> list[str]:
    """One line for each recipe."""
    return [
        f"{name:<30} {r.optimiser} {r.learning_rate:g}, {r.schedule.kind}, batch {r.batch_size}, {r.iterations} steps, "
        f"crop {r.augmentation.crop_px}; from {r.initial or 'scratch'}"
        for name, r in recipes.RECIPES.items()
    ]


def _resolve(job: TrainJob) -> _Resolved:
    try:
        recipe = _recipe(job)
    except ValueError as error:
        raise JobError(f"The recipe does not fit together: {error}") from None
    manifest = shards.read_manifest(storage.locate(job.dataset))
    split = manifest.split(job.split)
    if job.validation_images:
        manifest.split(job.validation_split)
    if recipe.loss.soft_weight and job.teacher is None:
        raise JobError("The recipe learns from a teacher too: give the npz file of its probabilities (teacher).")
    if recipe.loss.class_weights is not None and len(recipe.loss.class_weights) != len(manifest.classes):
        raise JobError(
            f"The recipe weighs {len(recipe.loss.class_weights)} classes, the dataset has {len(manifest.classes)}."
        )
    preprocessing, init, digest = models.variant(recipe.model).preprocessing, f"seeded, seed {recipe.seed}", ""
    trained_on = f"{manifest.name}-{job.split}"
    if job.initial is not None:
        try:
            card, digest = checkpoint.describe(remote_models.local_model(job.initial))
        except ValueError as error:
            raise JobError(f"The initial weights cannot be used: {error}") from None
        preprocessing = card.preprocessing
        init = f"{card.shown_name}, trained on {card.training_split}"
        if card.saw_voc_val:
            trained_on += f" after {card.training_split}"  # What it saw before, it has still seen
    teacher = None
    if recipe.loss.soft_weight and job.teacher is not None:
        place = storage.locate(job.teacher)
        with storage.explained(place):
            teacher = hashlib.sha256(storage.read_bytes(place)).hexdigest()
    identity = {
        "recipe": asdict(recipe),
        "dataset": split.digest,
        "classes": manifest.classes,
        "initial": digest,
        "teacher": teacher,
        "images_at_once": job.images_at_once,
    }
    card = ModelCard(
        variant=recipe.model,
        classes=tuple(manifest.classes),
        preprocessing=preprocessing,
        options=dict(recipe.options),
        init=init,
        training_split=trained_on,
        commit=_commit(),
    )
    return _Resolved(job, recipe, storage.locate(job.output), manifest, card, json.loads(json.dumps(identity)))


def _recipe(job: TrainJob) -> TrainRecipe:
    recipe = job.recipe
    if job.batch_size is not None:
        recipe = recipes.with_batch_size(recipe, job.batch_size)
    if job.iterations is not None:
        recipe = recipes.with_iterations(recipe, job.iterations)
    changes: dict[str, Any] = {
        name: value for name in ("precision", "seed") if (value := getattr(job, name)) is not None
    }
    if job.crop_px is not None:
        changes["augmentation"] = replace(recipe.augmentation, crop_px=job.crop_px)
    return replace(recipe, **changes)


def _read_record(output: Location) -> dict[str, Any]:
    try:
        record = json.loads(storage.read_bytes(output / _RECORD))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise JobError(f"{(output / _RECORD).uri} is not readable: choose another output, or remove it.") from None
    if not isinstance(record, dict) or record.get("record_version") != RECORD_VERSION:
        raise JobError(f"{(output / _RECORD).uri} was written by another version: choose another output.")
    return record


def _check_identity(resolved: _Resolved, record: dict[str, Any]) -> None:
    if not record:
        return
    differing = _differences(record["identity"], resolved.identity)
    if differing:
        raise JobError(
            f"{resolved.output.uri} holds another training, which differs in {', '.join(differing[:5])}: "
            "choose another output, or ask for the same."
        )


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys()):
            found += _differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if one == other else [name]


def _begin(resolved: _Resolved) -> dict[str, Any]:
    record = _read_record(resolved.output)
    _check_identity(resolved, record)
    if record:
        return record
    record = {
        "record_version": RECORD_VERSION,
        "status": "running",
        "identity": resolved.identity,
        "dataset": {"uri": resolved.job.dataset, "name": resolved.manifest.name, "digest": resolved.manifest.digest},
        "split": resolved.job.split,
        "validation_split": resolved.job.validation_split,
        "commit": resolved.card.commit,
        # Filled in with the first session's
        "num_threads": 0,
    }
    _write_record(resolved.output, record)
    return record


def _write_record(output: Location, record: dict[str, Any]) -> None:
    storage.write_whole(output / _RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


class _Driver:
    """One session of a training on Ray Train, watched from here."""

    def __init__(self, resolved: _Resolved, record: dict[str, Any], *, measure_steps: int = 0) -> None:
        self.resolved, self.record, self.measure_steps = resolved, record, measure_steps
        self.news: list[dict[str, Any]] = []
        job = resolved.job
        cpus, gpus = cluster.free_resources()
        self.use_gpu = gpus >= 1
        self.num_workers = job.num_workers or max(1, int(gpus))
        if self.use_gpu and self.num_workers > gpus:
            raise JobError(f"{self.num_workers} workers are asked for, but {gpus:g} GPUs are free.")
        if self.num_workers > cpus:
            raise JobError(f"{self.num_workers} workers are asked for, but {cpus:g} CPUs are free.")
        if resolved.recipe.batch_size % self.num_workers:
            raise JobError(
                f"A batch of {resolved.recipe.batch_size} images cannot be shared evenly by {self.num_workers} workers."
            )
        self.num_threads = int(record.get("num_threads") or job.num_threads or max(1, int(cpus / self.num_workers)))
        if not measure_steps and not record.get("num_threads"):
            record["num_threads"] = self.num_threads
            _write_record(resolved.output, record)

    def run(self) -> int:
        """Returns how often the workers were started again. Raises JobError with the reason where it failed."""
        import ray.train
        from ray.train.torch import TorchTrainer

        from tasks import training_loop

        mailbox = training_loop.Mailbox.remote()  # type: ignore[attr-defined]
        errors: list[BaseException] = []
        # Only Ray's own notes; checkpoints are ours (checkpoints.py)
        with tempfile.TemporaryDirectory(prefix="segment-archive-train-", ignore_cleanup_errors=True) as notes:
            per_worker = {"CPU": min(self.num_threads, self._cpus_of_a_worker())} | ({"GPU": 1} if self.use_gpu else {})
            trainer = TorchTrainer(
                training_loop.train_on_worker,
                train_loop_config={"config": self._config(mailbox)},
                scaling_config=ray.train.ScalingConfig(
                    num_workers=self.num_workers, use_gpu=self.use_gpu, resources_per_worker=per_worker
                ),
                run_config=ray.train.RunConfig(
                    name=f"train-{uuid.uuid4().hex[:12]}",
                    storage_path=notes,
                    failure_config=ray.train.FailureConfig(max_failures=self.resolved.job.max_failures),
                    logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
                ),
            )

            def fit() -> None:
                try:
                    trainer.fit()
                except BaseException as error:
                    errors.append(error)

            # Beside this thread, which listens to the workers
            fitting = threading.Thread(target=fit, daemon=True, name="ray-train")
            fitting.start()
            watcher = _Watcher(self.resolved.recipe, silent=bool(self.measure_steps))
            while fitting.is_alive():
                fitting.join(_POLL_S)
                self._listen(mailbox, watcher)
            self._listen(mailbox, watcher)
            watcher.end()
        failure = ray.get(mailbox.failure.remote())
        ray.kill(mailbox)
        if failure is not None:
            raise JobError(failure)
        if errors:
            raise JobError(f"The training has failed: {cluster.explain(errors[0])}") from errors[0]
        return max(0, watcher.starts - 1)

    def _cpus_of_a_worker(self) -> int:
        cpus, _ = cluster.free_resources()
        return max(1, int(cpus / self.num_workers))

    def _listen(self, mailbox: Any, watcher: "_Watcher") -> None:
        for news in ray.get(mailbox.take.remote()):
            watcher.hear(news)
            if self.measure_steps:
                self.news.append(news)

    def _config(self, mailbox: Any) -> Any:
        from tasks.training_loop import LoopConfig

        job, manifest = self.resolved.job, self.resolved.manifest
        return LoopConfig(
            output=self.resolved.output,
            dataset=storage.locate(job.dataset),
            recipe=self.resolved.recipe,
            classes=self.resolved.card.classes,
            preprocessing=self.resolved.card.preprocessing,
            train=manifest.split(job.split),
            validation=manifest.split(job.validation_split) if job.validation_images else None,
            validation_images=job.validation_images,
            inference=job.inference,
            # Workers have a working directory of their own
            initial=None if job.initial is None else _absolute(job.initial),
            teacher=None if job.teacher is None else storage.locate(job.teacher).uri,
            validate_every=job.validate_every,
            checkpoint_every=job.checkpoint_every,
            keep_checkpoints=job.keep_checkpoints,
            images_at_once=job.images_at_once,
            num_threads=self.num_threads,
            cache_bytes=job.cache_bytes,
            compiled=job.compiled,
            use_gpu=self.use_gpu,
            measure_steps=self.measure_steps,
            mailbox=mailbox,
        )


def _absolute(model: str) -> str:
    if model in models.NAMES or "://" in model or not Path(model).exists():
        return model
    return str(Path(model).resolve())


class _Artifact(progress.PrefectArtifact):
    """Steps instead of images."""

    text = ""

    def _text(self, state: progress.State) -> str:  # type: ignore[override]
        return self.text or f"step {state.done} of {state.total}"


class _Watcher:
    """Tells a person and Prefect how far a training is."""

    def __init__(self, recipe: TrainRecipe, *, silent: bool) -> None:
        self.recipe, self.silent = recipe, silent
        self.starts = 0
        self.artifact: _Artifact | None = None if silent else _Artifact()
        self.state = progress.State(recipe.iterations)
        self._first: tuple[int, float] | None = None
        self._said = 0.0
        self._tell_prefect("begin")

    def hear(self, news: dict[str, Any]) -> None:
        """One message of the workers."""
        self.state.done = max(self.state.done, news["step"]) if "resumed" not in news else news["step"]
        if "resumed" in news:
            self.starts += 1
            self._first = None
            if news["resumed"] and not self.silent:
                progress.say(f"Going on from the checkpoint of step {news['step']}.")
        elif "mean_iou" in news and "loss" not in news:
            if not self.silent:
                progress.say(f"step {news['step']}: validation mean IoU {100 * news['mean_iou']:.2f} %")
        else:
            self._advance(news)

    def end(self) -> None:
        """The session is over."""
        self._tell_prefect("end")

    def _advance(self, news: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (news["step"], now)
            return
        steps, seconds = news["step"] - self._first[0], now - self._first[1]
        rate = steps / seconds if seconds > 0 else 0.0
        left = f", {_duration((self.state.total - news['step']) / rate)} left" if rate else ""
        busy = 1 - news["seconds_data"] / max(1e-9, news["seconds"])
        text = (
            f"step {news['step']} of {self.state.total}, loss {news['loss']:.4f}, "
            f"{rate * self.recipe.batch_size:.1f} images/s, device busy {100 * busy:.0f} %{left}"
        )
        if self.artifact is not None:
            self.artifact.text = text
        self._tell_prefect("advance")
        if not self.silent and now - self._said > _SAY_EVERY_S:
            self._said = now
            progress.say(text)

    def _tell_prefect(self, what: str) -> None:
        if self.artifact is None:
            return
        try:
            getattr(self.artifact, what)(self.state)
        except Exception:  # A dead Prefect server is no reason to stop a training
            self.artifact = None


def _finish(resolved: _Resolved) -> dict[str, Any]:
    """Metrics, curves and model, then the record, which says that it is finished."""
    output, recipe = resolved.output, resolved.recipe
    rows = _all_rows(output)
    table = pa.concat_tables(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_whole(output / "metrics.parquet", sink.getvalue().to_pybytes())
    storage.write_whole(output / "curves.png", curves.draw(table, recipe, resolved.manifest.classes))
    state = checkpoints.read_checkpoint(output, recipe.iterations)
    network = models.build(recipe.model, len(resolved.card.classes), **dict(recipe.options))
    network.load_state_dict(state["trainer"]["average"] or state["trainer"]["network"])
    found = _measured(table, resolved)
    job = resolved.job
    digest = resolved.manifest.split(job.split).digest
    notes = (
        f"Trained by {recipe.iterations} steps of {recipe.batch_size} images, seed {recipe.seed}; the recipe stands in "
        f"training.json beside the checkpoints. Data: {resolved.manifest.name}, split {job.split}, digest {digest}."
    )
    card = replace(
        resolved.card,
        metrics={f"{_validated_on(resolved)}/{name}": value for name, value in found.items()},
        notes=notes,
    )
    _save_model(output / "model", network, card)
    record = _read_record(output) | {
        "status": "finished",
        "metrics": found,
        "mean_iou": next((v for v in reversed(table.column("mean_iou").to_pylist()) if v is not None), None),
        "loss": _last_loss(table),
        "best": state["progress"],
    }
    _write_record(output, record)
    return record


def _save_model(place: Location, network: Any, card: ModelCard) -> None:
    """A model directory; in a bucket the card is put last."""
    if place.protocol == "file":
        checkpoint.save(place.path, network, card, replace=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "model", network, card)
        for name in (checkpoint.WEIGHTS_FILE, checkpoint.CARD_FILE):
            storage.write_whole(place / name, (Path(folder) / "model" / name).read_bytes())


def _all_rows(output: Location) -> list[pa.Table]:
    """Rows of every step, once: parts that a killed session left beside those of a later one are of equal steps."""
    tables, seen = [], 0
    for file in storage.list_files(output / "metrics"):
        table = pq.read_table(pa.BufferReader(storage.read_bytes(output / "metrics" / file.path)))
        steps = table.column("step").to_pylist()
        table = table.slice(sum(step < seen for step in steps))
        if table.num_rows:
            seen = steps[-1] + 1
            tables.append(table)
    return tables


def _measured(table: pa.Table, resolved: _Resolved) -> dict[str, float]:
    validated = [row for row in table.select(["mean_iou", "iou"]).to_pylist() if row["mean_iou"] is not None]
    if not validated:
        return {}
    last = validated[-1]
    per_class = {
        f"iou_percent/{name}": 100 * value
        for name, value in zip(resolved.manifest.classes, last["iou"], strict=True)
        if value is not None
    }
    return {"miou_percent": 100 * last["mean_iou"], **per_class}


def _validated_on(resolved: _Resolved) -> str:
    """Name of the images that validation saw: no subset passes for the split."""
    job = resolved.job
    name = f"{resolved.manifest.name}-{job.validation_split}"
    whole = job.validation_images >= resolved.manifest.split(job.validation_split).images
    return name if whole else f"{name}-first-{job.validation_images}"


def _last_loss(table: pa.Table) -> float:
    losses = table.column("loss").to_pylist()[-100:]
    return float(sum(losses) / len(losses))


def _report(resolved: _Resolved, record: dict[str, Any], *, start: int, seconds: float, restarts: int) -> TrainReport:
    recipe, output = resolved.recipe, resolved.output
    table = pq.read_table(pa.BufferReader(storage.read_bytes(output / "metrics.parquet")))
    now = table.slice(start).select(["seconds", "seconds_data"]).to_pylist()
    spent = sum(row["seconds"] for row in now)
    best = record["best"]["best_mean_iou"]
    return TrainReport(
        output=resolved.job.output,
        model=(output / "model").uri,
        variant=recipe.model,
        steps=recipe.iterations,
        steps_now=recipe.iterations - start,
        resumed_from=start,
        seconds=seconds,
        images_per_s=len(now) * recipe.batch_size / spent if spent else 0.0,
        device_busy=1 - sum(row["seconds_data"] for row in now) / spent if spent else 0.0,
        loss=record["loss"],
        mean_iou=record["mean_iou"],
        best_mean_iou=best if best >= 0 else None,
        restarts=restarts,
    )


def _counted(recipe: TrainRecipe, num_classes: int) -> tuple[list[GroupPlan], int]:
    """Groups of what trains, and how many parameters do not; the network is built without memory for it."""
    import torch

    from segcore.schedules import parameter_groups

    with torch.device("meta"):
        network = models.build(recipe.model, num_classes, **dict(recipe.options))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, recipe.rules, recipe.weight_decay, decay_biases=recipe.decay_biases)
    plans = [
        GroupPlan(
            label=group.label,
            tensors=len(group.names),
            parameters=sum(sizes[name] for name in group.names),
            learning_rate=recipe.learning_rate * group.multiplier,
        )
        for group in groups
    ]
    return plans, sum(sizes.values()) - sum(group.parameters for group in plans)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _commit() -> str:
    """Commit of the project where it runs from a clone; empty elsewhere."""
    root = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
