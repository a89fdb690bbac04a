"""The archive job without Prefect, whose start costs more than a trial: `python -m tests.faults.job SOURCE OUTPUT PX`.

Like the console command it ends with status 1 and one sentence where it cannot go on.
"""

import os
import sys

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

from tasks.errors import JobError
from tasks.segmentation.finish import publish_report
from tasks.segmentation.job import ArchiveJob, list_archive
from tasks.segmentation.session import segment_remaining
from tasks.stream import growth

growth.STUCK_AFTER_S = 20.0  # Instead of two minutes, so that the trials in which a node is lost are short


def main() -> None:
    source, output, long_side = sys.argv[1:4]
    job = ArchiveJob(source=source, output=output, inference={"long_side_px": int(long_side)}, gallery_images=0)
    try:
        plan = list_archive(job)
        session = segment_remaining(job, plan)
        report = publish_report(job, plan, session)
    except JobError as error:
        print(f"SENTENCE: {error}", flush=True)
        raise SystemExit(1) from None
    print(f"{report.images} images: {report.masks} masks", flush=True)


if __name__ == "__main__":
    main()
