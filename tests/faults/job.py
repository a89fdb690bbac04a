"""The archive job without Prefect: `python -m tests.faults.job SOURCE OUTPUT PX ENGINE LIMITS`.

ENGINE: local, ray, or staged: Ray on a node that books a GPU, which is none, so that every unit goes through the actors
of such nodes. LIMITS: further fields of the job, as JSON.

Like the console command it ends with status 1 and one sentence where it cannot go on.
"""

import json
import os
import sys

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

from tasks.errors import JobError
from tasks.segmentation.archive_job import ArchiveJob, list_archive
from tasks.segmentation.finish import publish_report
from tasks.segmentation.session import segment_remaining


def main() -> None:
    source, output, long_side, engine, limits = sys.argv[1:]
    asked: dict[str, object] = {"source": source, "output": output, "gallery_images": 0}
    asked |= {"inference": {"long_side_px": int(long_side)}, "engine": "local" if engine == "local" else "ray"}
    asked |= json.loads(limits)
    job = ArchiveJob(**asked)
    try:
        if engine == "staged":
            import ray

            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            ray.init(address="local", num_cpus=2, num_gpus=1, object_store_memory=400 * 2**20, **quiet)
        plan = list_archive(job)
        session = segment_remaining(job, plan)
        report = publish_report(job, plan, session)
    except JobError as error:
        print(f"SENTENCE: {error}", flush=True)
        raise SystemExit(1) from None
    print(f"{report.images} images: {report.masks} masks", flush=True)


if __name__ == "__main__":
    main()
