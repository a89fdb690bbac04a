"""`make demo`: the main job on the photographs of `examples/`, a question to its result, and a picture."""

import time
from pathlib import Path

import flows.cli
from flows import execution, jobs
from tasks.segmentation.contact_sheet import contact_sheet
from tasks.segmentation.job import ArchiveJob
from tasks.segmentation.report import query
from tasks.storage import locate

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the demo; everything that it makes is in demo-output/."""
    source, output = ROOT / "examples" / "photographs", ROOT / "demo-output"
    start = time.monotonic()
    print(f"Segmenting the photographs in {source.relative_to(ROOT)}/ ...")
    job = ArchiveJob(source=str(source), output=str(output))
    report = execution.run(jobs.segment_archive, job)
    flows.cli.show(report, "examples/photographs")

    import duckdb

    print("\nIts answer:")
    print(duckdb.sql(query(report)))
    picture = output / "demo.png"
    shown = contact_sheet(report.output, report.run_id, locate(str(picture)))
    print(f"{shown} images, masks and overlays side by side: {picture.relative_to(ROOT)}")
    print(f"The demo took {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    execution.main(main)
