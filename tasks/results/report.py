"""What is asked of a gallery: images of one run, or those that changed most between two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import annotated_types
from pydantic import BaseModel

from tasks import storage
from tasks.errors import JobError

if TYPE_CHECKING:
    from tasks.results.gallery import GalleryReport

GALLERY_IMAGES = 1000
"""Images that a gallery shows unless it is asked for another number: all up to these, else a sample."""

MOST_IMAGES = 10_000
"""Images of one gallery at most: what stays fluid in a browser, in a folder that can still be copied."""

_COLUMNS = [
    "image_id",
    "uri",
    "source_size",
    "width",
    "height",
    "mask",
    "mask_before_crf",
    "mask_file",
    "mask_width",
    "mask_height",
]
_COLUMNS += ["classes", "confidence", "entropy", "changed_by_crf", "device", "error_kind", "error"]


class ReportJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which images to show, and where."""

    output: str
    """URI of the results."""

    run: str | None = None
    """Run to show; by default the one that finished last."""

    to: str | None = None
    """Folder of the gallery; by default report/run=<run id> of the output."""

    images: Annotated[int, annotated_types.Ge(1)] = GALLERY_IMAGES
    """Images to show; 10,000 at most."""

    where: str | None = None
    """Condition on the view images, in SQL; by default all."""

    order: str | None = None
    """Which images come first where there are more, in SQL; by default a sample by their identities."""

    truth: str | None = None
    """True masks to show beside the prediction: a folder of PNG masks named as the images, whose values are the
    model's labels, or a prepared dataset."""


def build_report(job: ReportJob, advance: Callable[[int, int], None] | None = None) -> GalleryReport:
    """Make the gallery of a run, or make it anew. advance: told how many images are done, of how many.

    Raises JobError where the run has no such images, or the folder holds something else.
    """
    output = storage.locate(job.output)
    from tasks.results.gallery import write_gallery
    from tasks.results.gallery_summary import about_run, title_of
    from tasks.results.reading import open_results

    with storage.explained(output):
        results = open_results(job.output, job.run)
        asked, selecting = min(job.images, MOST_IMAGES), f" WHERE {job.where}" if job.where else ""
        sql = f"SELECT image_id FROM images{selecting} ORDER BY {job.order or 'md5(image_id)'} LIMIT {asked}"
        truth = None
        if job.where or job.order or job.truth or results.num_rows > asked:
            from tasks.results import query  # DuckDB, and what it brings

            ids = [row[0] for row in query.ask(job.output, sql, results.run_id).rows()]
            [(matching,)] = query.ask(job.output, f"SELECT count(*) FROM images{selecting}", results.run_id).rows()
            shown, rows = len(ids), results.rows_of(ids, _COLUMNS)
            if ids and job.truth is not None:
                from tasks.results.truth import Truth

                labels = query.ask(job.output, "SELECT DISTINCT label, class FROM objects", results.run_id).rows()
                truth = Truth(job.truth, ids, dict(labels))
        else:
            shown, matching, rows = results.num_rows, results.num_rows, results.rows(_COLUMNS)
    if not shown:
        raise JobError(f"No image of run {results.run_id} fits the condition {job.where!r}.")
    notice = ""
    if matching > shown:
        capped = f" A gallery holds {MOST_IMAGES:,} at most." if job.images > MOST_IMAGES else ""
        how = "those that come first" if job.order else "a sample of all"
        notice = f"{shown:,} of {matching:,} images are shown: {how}.{capped} This query selects them:"
    summary = {
        "kind": "run",
        "title": title_of(results),
        "layers": {"mask": "After the CRF", "before": "Before the CRF", "changes": "Changed by the CRF"},
        "changed": "Changed by CRF",
        "notice": notice,
        "query": sql,
        "again": _command(job),
        "matching": matching,
        **about_run(results),
    }
    place = storage.locate(job.to) if job.to else results.output.gallery_folder(results.run_id)
    report = write_gallery(results, rows, shown, place, summary, advance, truth)
    report.matching, report.query = matching, sql
    return report


def build_diff_report(
    output: str, run_a: str, run_b: str, *, images: int = 200, advance: Callable[[int, int], None] | None = None
) -> tuple[Any, GalleryReport | None]:
    """Compare two runs and make a gallery of the images that changed most.

    Returns the `tasks.results.compare.DiffReport`, and the gallery; None where nothing differs.
    """
    from tasks.results.compare import diff_runs
    from tasks.results.gallery import write_gallery
    from tasks.results.gallery_summary import about_run
    from tasks.results.reading import open_results

    report = diff_runs(output, run_a, run_b, most=min(images, MOST_IMAGES), advance=advance)
    if not report.changed_most:
        return report, None
    first, second = open_results(output, report.run_a), open_results(output, report.run_b)
    rank = {image_id: number for number, (image_id, _) in enumerate(report.changed_most)}
    before = {row["image_id"]: row["mask"] for row in first.rows_of(list(rank), ["image_id", "mask"])}

    def rows() -> Iterator[dict[str, Any]]:
        found = {row["image_id"]: row for row in second.rows_of(list(rank), _COLUMNS)}
        for image_id, share in report.changed_most:
            yield found[image_id] | {"mask_before_crf": before[image_id], "changed_by_crf": share}

    about = about_run(second)
    about["facts"] = [
        ["Run A", f"{report.run_a}, {first.record.get('model')}"],
        ["Run B", f"{report.run_b}, {second.record.get('model')}"],
        ["Images with a mask in both", f"{report.images:,}"],
        ["Equal in every pixel", f"{report.equal:,}"],
        ["Pixels with the same label", f"{report.agreement:.2%}"],
    ]
    about["agreement"] = [[name, agreement.agreement] for name, agreement in report.classes.items()]
    summary = {
        "kind": "diff",
        "title": f"{report.run_a} against {report.run_b}",
        "layers": {"mask": "Run B", "before": "Run A", "changes": "Where they differ"},
        "changed": "Differs",
        "notice": f"The {len(rank):,} images that changed most between run A ({report.run_a}) and B ({report.run_b}).",
        "query": f"SELECT * FROM '{report.folder}/images.parquet' ORDER BY disagreement DESC LIMIT {len(rank)}",
        "again": f"segment-archive diff {output} {report.run_a} {report.run_b}",
        "matching": report.images - report.equal,
        **about,
    }
    folder = second.output.diff_folder(report.run_a, report.run_b) / "gallery"
    with storage.explained(folder):
        return report, write_gallery(second, rows(), len(rank), folder, summary, None)


def _command(job: ReportJob) -> str:
    """What makes a gallery of other images."""
    return f'segment-archive report {job.output} --where "confidence < 0.6" --images {MOST_IMAGES}'
