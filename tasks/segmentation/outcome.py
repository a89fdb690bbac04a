"""What came out of a run: the report, as Markdown, and a first question to the files."""

import shlex
from dataclasses import dataclass, field

from tasks.segmentation.session import SessionReport
from tasks.words import counted


@dataclass
class ClassCount:
    """One class over the whole archive."""

    images: int = 0
    """Images with at least one pixel of it."""

    pixels: int = 0


@dataclass
class ArchiveReport:
    """What came out: `images == masks + errors`, and `duplicates` of the masks are those of other images."""

    run_id: str
    output: str
    model: str
    images: int = 0
    masks: int = 0
    duplicates: int = 0
    """Images that have the mask of one that looks alike."""

    errors: dict[str, int] = field(default_factory=dict)
    """Error rows by kind, most frequent first."""

    classes: dict[str, ClassCount] = field(default_factory=dict)
    """By name, in most images first."""

    examples: list[str] = field(default_factory=list)
    """A few error rows: identity and reason."""

    done_now: int = 0
    """Images done by this session."""

    gallery: str | None = None
    """Page of the gallery; None where none was made."""

    contact_sheet: str | None = None
    """A dozen overlays in one picture."""

    compacted: bool = False
    """Whether large files stand for small ones."""

    label_files: int = 0
    """Masks that lie beside their rows."""

    segments: list[str] = field(default_factory=list)
    """Segments of the manifest that this was proved over."""

    session: SessionReport = field(default_factory=SessionReport)

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def sentence(self) -> str:
        """What came out, in counts."""
        copies = f" ({counted(self.duplicates, 'duplicate')} among them)" if self.duplicates else ""
        masks, errors = counted(self.masks, "mask"), counted(self.num_errors, "error")
        return f"{counted(self.images, 'image')}: {masks}{copies}, {errors}"


def summary(report: ArchiveReport) -> str:
    """The result in Markdown."""
    lines = [
        f"# {report.sentence}",
        "",
        f"Run `{report.run_id}` of model {report.model}, in `{report.output}`.",
        "",
    ]
    session = report.session
    if session.images:
        lines += [
            f"This session did {counted(session.images, 'image')} in {session.seconds:.0f} s "
            f"({session.images / max(1e-9, session.seconds):.2f} images/s; {session.workers}).",
            "",
            "| stage | busy share of its workers | images/s of one worker | units that wait before it |",
            "|---|---|---|---|",
            *(
                f"| {n} | {s['busy_share']:.0%} | {s['images_per_s']:.2f} | {s['queue_units']:.1f} |"
                for n, s in session.stages.items()
            ),
            "",
            *([f"**{session.warning}**", ""] if session.warning else []),
        ]
    if report.errors:
        lines += ["| error | images |", "|---|---|", *(f"| {kind} | {n} |" for kind, n in report.errors.items()), ""]
    lines += ["```" if report.compacted else "```sql", query(report), "```"]
    return "\n".join(lines)


def query(report: ArchiveReport) -> str:
    """A first question to the output: DuckDB's SQL over its files, or our command where they were compacted."""
    if report.compacted:
        sql = "SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC"
        return f"segment-archive query {shlex.quote(report.output)} --run {report.run_id} {shlex.quote(sql)}"
    files = f"{report.output.rstrip('/')}/masks/run={report.run_id}/*.parquet".replace("'", "''")
    return (
        "SELECT class.name AS name, count(*) AS images, round(avg(class.pixels / area), 3) AS mean_share\n"
        f"FROM (SELECT unnest(classes) AS class, mask_width * mask_height AS area FROM '{files}')\n"
        "GROUP BY ALL ORDER BY images DESC, name LIMIT 8"
    )
