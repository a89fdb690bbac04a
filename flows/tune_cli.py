"""The console command `segment-archive tune-crf`."""

from flows import screen
from flows.options import Json, Quiet, options
from tasks.evaluation.tuning import TuneJob


@options(arguments=("scores", "images", "truth", "output"))
def tune_crf(job: TuneJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Search the CRF parameters with the best mean IoU, coarse to fine, as the papers do.

    For example:

    segment-archive tune-crf pspnet_lite2 voc/JPEGImages voc/SegmentationClass tuned/ --num-images 100

    segment-archive tune-crf scores.npz JPEGImages SegmentationClass tuned/ --num-held-out 100
    """
    from flows import execution, jobs

    report = execution.run(jobs.tune_crf, job, quiet=quiet or json)
    if json:
        screen.print_json(report)
    if json or quiet:
        return
    print(report.told())
    print(f"Best: {report.best}")
    print(f"Table, report and picture: {job.output}")
