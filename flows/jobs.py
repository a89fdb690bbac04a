"""The order of each job's steps, written once: `step` says what becomes of a step, Prefect's task or nothing at all.

Everything is imported where it is needed, so that a command loads no more than its own job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from tasks.datasets.prepare import DatasetJob, DatasetReport
    from tasks.evaluation.evaluate import ReevaluateJob
    from tasks.evaluation.tuning import TuneJob, TuneReport
    from tasks.nights.baselines import Night
    from tasks.nights.nightly import NightPlan
    from tasks.results.sealing import CompactJob, CompactReport
    from tasks.review.corrections import CorrectionsJob, CorrectionsReport
    from tasks.segmentation.archive_job import ArchiveJob
    from tasks.segmentation.outcome import ArchiveReport
    from tasks.training.finish import TrainReport
    from tasks.training.train import TrainPlan
    from tasks.training.training_job import TrainJob

P = ParamSpec("P")
R = TypeVar("R")


class Step(Protocol):
    """Wraps a step's function into one that is called in its place.

    again: it goes on where it ended, so a lost node or an outage is worth another try.
    """

    def __call__(self, function: Callable[P, R], /, *, again: bool = False) -> Callable[P, R]: ...


def segment_archive(job: ArchiveJob, step: Step) -> ArchiveReport:
    """Give every image of an archive a mask, and say what is in it."""
    from tasks import engines, processes

    with processes.without_pandas():
        with engines.opened(job.engine, cpus=job.cpus, gpus=job.gpus) as engine:
            if _is_new(job.output):
                engine.begin(job.inference.precision)  # While this process loads what it needs itself
            from tasks.segmentation.archive_job import list_archive
            from tasks.segmentation.session import segment_remaining

            plan = step(list_archive, again=True)(job, engine)
            session = step(segment_remaining, again=True)(job, plan, engine)
        from tasks.segmentation.finish import publish_gallery, publish_report

        report = step(publish_report, again=True)(job, plan, session)
        return step(publish_gallery)(job, report)


def _is_new(output: str) -> bool:
    """Whether a job has never run there, as far as a local folder tells at once."""
    return "://" not in output and not (Path(output) / "runs").exists()


def compact_run(job: CompactJob, step: Step) -> CompactReport:
    """Compact a finished run, and say what was done."""
    from tasks.results.sealing import compact

    return step(compact)(job)


def prepare_dataset(job: DatasetJob, step: Step) -> DatasetReport:
    """Fetch what can be fetched, check it, and store it as shards."""
    from tasks.datasets.prepare import check_pairs, fetch_archives, unpack_archives, write_shards

    archives = step(fetch_archives)(job)
    sources = step(unpack_archives)(job, archives)
    step(check_pairs)(job, sources)
    return step(write_shards)(job, sources)


def import_corrections(job: CorrectionsJob, step: Step) -> CorrectionsReport:
    """Bring corrected masks back, and prepare them as a dataset."""
    from tasks.review.corrections import collect_corrections, dataset_job

    report = step(collect_corrections)(job)
    return report.model_copy(update={"dataset": prepare_dataset(dataset_job(job), step)})


def reevaluate(job: ReevaluateJob, step: Step) -> Night | NightPlan:
    """Say how good every model is, how certain that is, and whether one became worse; the plan where nothing is new."""
    from tasks.nights.nightly import close_night, evaluate_models, judge_night, plan_night, publish_night

    plan = step(plan_night)(job)
    if plan.nothing_new:
        return plan
    night = step(evaluate_models)(job, plan)
    night = step(judge_night)(job, night)
    night = step(publish_night)(job, night)
    step(close_night)(job, night)
    return night


def train_model(job: TrainJob, step: Step) -> TrainReport:
    """Train from where the output stands to the last step, and write the model."""
    from tasks.training.train import train

    return step(train)(job)


def plan_training(job: TrainJob, step: Step) -> TrainPlan:
    """Say what a training will do, measured over a few steps."""
    from tasks.training.train import plan

    return step(plan)(job)


def tune_crf(job: TuneJob, step: Step) -> TuneReport:
    """Find the CRF parameters with the best mean IoU, and say how sure that is."""
    from tasks.evaluation.tuning import search_crf

    return step(search_crf)(job)
