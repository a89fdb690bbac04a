"""One session of a training on Ray Train, seen from the driver; a worker's side is `loop.py`."""

import os
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segcore import models
from segcore.learning.recipes import TrainRecipe
from tasks import cluster, progress, storage
from tasks.errors import JobError
from tasks.training.resolved import ResolvedTraining, write_record

_POLL_S = 0.3

_PATIENCE_S = 20.0
"""Silence of the workers after which it is looked whether the cluster still has room for them."""

_PLACING_S = "15"
"""How long Ray Train waits for the room it counted on before it counts again. Just after a node was lost it still
counts on that one, and its own patience is a minute."""

_GROW_AGAIN_S = 600.0
"""How often it is looked whether there is room for more workers again; taking it up costs the steps since the last
checkpoint."""


class Watcher:
    """Reports how far a training is, and counts in `starts` how often its workers have begun."""

    def __init__(self, recipe: TrainRecipe, measure_steps: int) -> None:
        """measure_steps: how many steps are only measured; 0 trains."""
        self.recipe = recipe
        self.starts = 0
        title = "measuring" if measure_steps else "training"
        steps = measure_steps or recipe.iterations
        self._tracker = progress.Tracker(steps, title=title, unit="steps", cost=recipe.cost)

    def hear(self, news: dict[str, Any]) -> None:
        """One message of the workers."""
        if "resumed" in news:
            self.starts += 1
        if "resumed" in news:
            self._tracker.restart(news["step"])
            if news["resumed"]:
                workers = f"{news['workers']} worker{'s' * (news['workers'] > 1)}"
                progress.say(f"Going on from the checkpoint of step {news['step']}, with {workers}.")
        elif "mean_iou" in news and "loss" not in news:
            progress.say(f"step {news['step']}: validation mean IoU {100 * news['mean_iou']:.2f} %")
        else:
            busy = 1 - news["seconds_data"] / max(1e-9, news["seconds"])
            speed = self._tracker.state.rate * self.recipe.batch_size
            self._tracker.advance(
                max(0, news["step"] - self._tracker.state.done),
                note=f"loss {news['loss']:.4f}, "
                + (f"{speed:.1f} images/s, " if speed else "")
                + f"device busy {100 * busy:.0f} %",
            )

    def end(self) -> None:
        """The session is over."""
        self._tracker.end()


class Driver:
    """One session of a training on Ray Train, watched from here."""

    def __init__(self, resolved: ResolvedTraining, record: dict[str, Any], *, measure_steps: int = 0) -> None:
        """record: of the output; the first session's number of threads is put into it.

        measure_steps: steps that are only measured; what the workers say of them is in
        `news`. 0 trains. Raises JobError where the cluster has too little, or the batch cannot be shared.
        """
        self.resolved, self.record, self.measure_steps = resolved, record, measure_steps
        self.news: list[dict[str, Any]] = []
        self.heard, self.warned = time.monotonic(), False
        job = resolved.job
        cpus, gpus = cluster.free_resources((job.num_workers or 1.0, 0.0))
        self.use_gpu = gpus >= 1
        self.num_workers = job.num_workers or max(1, int(gpus))
        if self.use_gpu and self.num_workers > gpus:
            raise JobError(f"{self.num_workers} workers are asked for, but {gpus:g} GPUs are free.")
        if self.num_workers > cpus:
            raise JobError(f"{self.num_workers} workers are asked for, but {cpus:g} CPUs are free.")
        if resolved.recipe.batch_size < self.num_workers:
            raise JobError(
                f"A batch of {resolved.recipe.batch_size} images cannot be shared by {self.num_workers} workers: "
                "choose fewer workers, or a larger batch."
            )
        self.min_workers = job.min_workers or (self.num_workers if job.num_workers else 1)
        if self.min_workers > self.num_workers:
            raise JobError(f"At least {self.min_workers} workers are asked for, but {self.num_workers} at most.")
        self.num_threads = int(record.get("num_threads") or job.num_threads or max(1, int(cpus / self.num_workers)))
        self.per_worker = {"CPU": min(self.num_threads, max(1, int(cpus / self.num_workers)))}
        if self.use_gpu:
            self.per_worker["GPU"] = 1
        if not measure_steps and not record.get("num_threads"):
            record["num_threads"] = self.num_threads
            write_record(resolved.output, record)

    def run(self) -> int:
        """Returns how often the workers were started again. Raises JobError with the reason where it failed."""
        import ray.train
        from ray.train.torch import TorchTrainer

        from tasks.training import loop as training_loop

        # On the node of this process, which no loss of another one takes away
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = training_loop.Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        errors: list[BaseException] = []
        # Only Ray's own notes; checkpoints are ours (checkpoints.py)
        with tempfile.TemporaryDirectory(prefix="segment-archive-train-", ignore_cleanup_errors=True) as notes:
            elastic = self.min_workers < self.num_workers
            if elastic:
                os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _PLACING_S)
            # Ray declares its first version's types, whose ScalingConfig knows neither
            scaling: dict[str, Any] = {
                "num_workers": (self.min_workers, self.num_workers) if elastic else self.num_workers,
                "elastic_resize_monitor_interval_s": _GROW_AGAIN_S,
            }
            trainer = TorchTrainer(
                training_loop.train_on_worker,
                train_loop_config={"config": self._config(mailbox)},
                scaling_config=ray.train.ScalingConfig(
                    use_gpu=self.use_gpu, resources_per_worker=self.per_worker, **scaling
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
            watcher = Watcher(self.resolved.recipe, self.measure_steps)
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

    def _listen(self, mailbox: Any, watcher: Watcher) -> None:
        cluster.ready([taken := mailbox.take.remote()])
        for news in ray.get(taken):
            watcher.hear(news)
            self.heard, self.warned = time.monotonic(), False
            if self.measure_steps:
                self.news.append(news)
        if not self.warned and time.monotonic() - self.heard > _PATIENCE_S:
            self.warned = True
            if missing := self.missing():
                progress.say(missing)

    def missing(self) -> str:
        """What the cluster lacks for the fewest workers, and the way out; empty where it lacks nothing."""
        nodes = cluster.all_nodes().values()
        room = sum(
            min(int(cpus / self.per_worker["CPU"]), int(gpus) if self.use_gpu else self.num_workers)
            for cpus, gpus in nodes
        )
        if room >= self.min_workers:
            return ""
        needed = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in self.per_worker.items())
        fewer = (
            f", or start this again with --min-workers {room}, which goes on from its newest checkpoint" if room else ""
        )
        return (
            f"Waiting: {self.min_workers} workers are needed, with {needed} each, and the cluster has room for {room}. "
            f"Add a node{fewer}."
        )

    def _config(self, mailbox: Any) -> Any:
        from tasks.training.loop import LoopConfig

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
