"""`make demo`: the main job on the photographs of `examples/`, a question to its result, and a picture."""

import sys
import time
from pathlib import Path

import flows.cli  # Sets what Prefect and Ray print, before they are imported
from flows.segment_archive import segment_archive
from tasks import progress
from tasks.segmentation.contact_sheet import contact_sheet
from tasks.segmentation.job import ArchiveJob
from tasks.segmentation.report import ArchiveReport, query
from tasks.storage import locate

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the demo; everything that it makes is in demo-output/."""
    source, output = ROOT / "examples" / "photographs", ROOT / "demo-output"
    start = time.monotonic()
    print(f"Segmenting the photographs in {source.relative_to(ROOT)}/ ...")
    job = ArchiveJob(source=str(source), output=str(output))
    try:
        with progress.told_to(progress.Terminal()):
            state = segment_archive(job, return_state=True)
    except Exception as error:  # Before Prefect has a run that could have a state
        sys.exit(f"segment-archive: Prefect could not start the run: {type(error).__name__}: {error}")
    if not state.is_completed():
        sys.exit(f"segment-archive: {state.message}")
    report: ArchiveReport = state.result()  # type: ignore[assignment]
    flows.cli.show(report, "examples/photographs")

    import duckdb

    print("\nIts answer:")
    print(duckdb.sql(query(report)))
    picture = output / "demo.png"
    shown = contact_sheet(report.output, report.run_id, locate(str(picture)))
    print(f"{shown} images, masks and overlays side by side: {picture.relative_to(ROOT)}")
    print(f"The demo took {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
