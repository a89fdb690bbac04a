"""The end of a run: it is proved, recorded, and shown."""

import dataclasses
import hashlib

from tasks import progress, storage
from tasks.archive import runs
from tasks.archive.manifest import segment_names
from tasks.archive.output import Output
from tasks.errors import JobError
from tasks.results import gallery
from tasks.results.png_tree import update_png_tree
from tasks.results.report import ReportJob, build_report
from tasks.segmentation.archive_job import ArchiveJob, ArchivePlan, Identity, identify
from tasks.segmentation.outcome import ArchiveReport, ClassCount
from tasks.segmentation.session import SessionReport
from tasks.segmentation.verify import check_run, most_images_first


def publish_report(job: ArchiveJob, plan: ArchivePlan, session: SessionReport) -> ArchiveReport:
    """Check that every image has exactly one row, write the run record, and show what is in the archive."""
    output = Output.at(job.output)
    identity = identify(job)
    measured = dataclasses.asdict(session) if session.images else None
    with storage.explained(output.place):
        names = segment_names(output.manifest_folder(identity.source_id))
        known = None if plan.remaining_units else _finished_before(output, identity, names)
        if known is None:
            try:
                report = check_run(output, identity)
            except JobError:
                runs.end(output.place, plan.run_id, runs.FAILED, measured)
                raise
        if job.png:
            update_png_tree(output, plan.run_id)
    if known is not None:
        return known
    report.session, report.done_now = session, session.images
    facts = {
        "images": report.images,
        "segments": report.segments,
        "compacted": _compacted(output, plan.run_id),
        "label_files": report.label_files,
        "masks": report.masks,
        "duplicates": report.duplicates,
        "errors": report.errors,
        "error_examples": report.examples,
        "classes": {name: dataclasses.asdict(count) for name, count in report.classes.items()},
    }
    runs.end(output.place, plan.run_id, runs.FINISHED, measured, **facts)
    output.sweep()
    return report


def publish_gallery(job: ArchiveJob, report: ArchiveReport) -> ArchiveReport:
    """Make the gallery; returns the report with its address.

    The rows are proved and recorded by now: whatever goes wrong here is said, and fails nothing.
    """
    if not job.gallery_images:
        return report
    output = Output.at(job.output)
    try:
        folder = output.gallery_folder(report.run_id)
        index, sheet = folder / "index.html", folder / gallery.SHEET
        if report.done_now or not storage.exists(index):
            build_report(ReportJob(output=job.output, run=report.run_id, images=job.gallery_images))
        pictured = sheet.uri if storage.exists(sheet) else None
    except Exception as error:
        progress.say(f"No gallery was made ({str(error) or type(error).__name__}). The masks are complete.")
        return report
    return dataclasses.replace(report, gallery=index.uri, contact_sheet=pictured)


def _finished_before(output: Output, identity: Identity, segments: list[str]) -> ArchiveReport | None:
    """The report of a run that was proved before over these very segments, in the files that hold them now."""
    record = output.record(identity.run_id)
    if record.get("status") != runs.FINISHED or record.get("segments") != segments:
        return None
    if record.get("compacted") != _compacted(output, identity.run_id):
        return None  # What stands for the proved files since then is proved too, once
    if len(output.label_files(identity.run_id)) < record.get("label_files", 0):
        return None  # Masks beside their rows are gone: which, the proof finds
    classes = {name: ClassCount(**count) for name, count in record.get("classes", {}).items()}
    classes = dict(sorted(classes.items(), key=most_images_first))
    return ArchiveReport(
        run_id=identity.run_id,
        output=output.uri,
        model=identity.model_name,
        images=record["images"],
        masks=record["masks"],
        duplicates=record.get("duplicates", 0),
        errors=dict(sorted(record["errors"].items(), key=lambda item: -item[1])),
        classes=classes,
        examples=record.get("error_examples", []),
        compacted=record.get("compacted") is not None,
    )


def _compacted(output: Output, run_id: str) -> str | None:
    """Names the large files without which rows are missing; None where there are none."""
    alone = output.look(run_id).alone
    prefixes = "".join(sorted(seal.prefix for seal in alone.values()))
    return hashlib.sha256(prefixes.encode()).hexdigest()[:12] if alone else None
