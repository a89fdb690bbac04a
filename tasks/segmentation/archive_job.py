"""The archive job: what is asked, which run that is, and what remains of it.

A job is identified by everything that decides a mask (`run_id`). Its output is its own checkpoint: the manifest says
what there is, the names of the mask files (and the seals of a compacted run) say what is done, the difference is what
remains. Nothing else is kept, so nothing else can be wrong after a crash. `session.py` does what remains, `proof.py`
proves the result.
"""

import functools
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel, BeforeValidator

from segcore.crf import dense_crf
from segcore.crf.dense_crf import Backend, CrfParams
from segcore.datasets import near_duplicates
from segcore.images import raw
from segcore.images.decoding import MAX_PIXELS, Reading
from segcore.images.errors import ErrorKind
from segcore.models import checkpoint
from segcore.predictor import PredictParams
from segcore.scoring.inference import InferenceParams, relative_work
from segcore.scoring.onnx_scorer import require_usable
from segcore.voc import MOST_BYTE_CLASSES
from tasks import engines, progress, storage
from tasks.archive import runs
from tasks.archive.entries import Entry
from tasks.archive.manifest import PART_IMAGES, Manifest, Part, extend
from tasks.archive.output import MaskFile, Output, source_id
from tasks.archive.schema import LARGE_SCHEMA_VERSION, SCHEMA_VERSION, version_of
from tasks.archive.sources import LeftAside, Source, list_source
from tasks.engines import Engine, EngineName
from tasks.errors import JobError, require_packages
from tasks.models.remote import local_model
from tasks.results.reading import Results
from tasks.results.report import GALLERY_IMAGES
from tasks.segmentation import duplicates
from tasks.segmentation.duplicates import Duplicates, Original
from tasks.stream.isolation import limits_of
from tasks.stream.survey import inner_images
from tasks.stream.units import Destination, MaskParams, Unit, mask_file
from tasks.stream.worker import UnitWork
from tasks.words import counted

DEFAULT_MODEL = "pspnet_lite2"
"""The model whose weights ship with the project; see docs/default-model.md."""


class ArchiveJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to segment, with what, and where to put it."""

    source: str
    """URI of the images: a folder, a file, a bucket prefix, tar shards, zip archives, or a Parquet dataset with an
    image column."""

    output: str
    """URI that manifest, masks and run records are written under."""

    model: str = DEFAULT_MODEL
    """Name of a model, path of an ONNX file, path or URI of a model directory, hf:org/name of the Hugging Face hub or a
    folder in its layout, or module:function, whose code runs."""

    untrained: bool = False
    """Use seeded random weights where no trained ones exist; every output says so."""

    seed: int = 0
    """Seed of the untrained weights."""

    inference: InferenceParams = InferenceParams()
    """How scores are made: sizes, scales, windows, precision."""

    crf: Annotated[CrfParams | None, BeforeValidator(dense_crf.named_params)] = CrfParams()
    """Sharpen masks by the fully connected CRF; None leaves the scores unrefined. Parameters, or a preset's name."""

    crf_engine: Backend = "auto"
    """Engine of the CRF; auto takes the native one where it is built; cuda: on the GPU that scores."""

    mask_size: Literal["own", "working"] = "own"
    """Masks at the photograph's own size (scaled by nearest), or at the working size."""

    keep_mask_before_crf: bool = False
    """Store the mask before the CRF too."""

    png: bool = False
    """Write each mask as a PNG file of its own too, at the end, under png/ and the name that an export gives it."""

    gallery_images: Annotated[int, annotated_types.Interval(ge=0, le=10_000)] = GALLERY_IMAGES
    """Images of the gallery that is made at the end: all up to this many, else a sample; 0 makes none."""

    max_pixels: Annotated[int, annotated_types.Interval(ge=1, le=MAX_PIXELS)] = PredictParams.max_pixels
    """Photographs with more pixels become error rows."""

    raw: Literal["preview", "full"] = "preview"
    """Of RAW files: the camera's preview where it is large enough, or always the sensor's values, developed."""

    ignore_profiles: bool = False
    """Take the colours of every photograph for sRGB, as versions did that did not convert embedded profiles."""

    image_seconds: Annotated[float, annotated_types.Gt(0)] | None = None
    """Time that one image may take in one stage before it becomes an error row; by default five minutes, and more in
    proportion where the model, the sizes and the scales make much work."""

    image_memory_mib: Annotated[int, annotated_types.Ge(64)] | None = None
    """Memory in MiB that one image may take before it becomes an error row; by default half of a machine's."""

    id_column: str | None = None
    """Column of a Parquet source with the identity, nested fields with dots; by default the first of the usual names
    whose values are unique, else the number of the row in its file."""

    image_column: str | None = None
    """Column of a Parquet source with the image bytes, such as image.bytes; by default the first of the usual names."""

    refresh_changed: bool = False
    """Do photographs again that were replaced under the same path."""

    pages: Literal["first", "all"] = "first"
    """Take the first page of a TIFF, and frame of a GIF or WebP, or each as an image of its own (name.tif#2)."""

    frames: Annotated[float, annotated_types.Ge(0.04)] | Literal["scenes"] | None = None
    """Take frames of video files as images (clip.mp4#t=12.0): one every so many seconds, or one of each scene."""

    pairs: bool = False
    """Count a RAW file and the JPEG or HEIC of the same shot (same folder, same name) as one picture, the latter."""

    skip_duplicates: bool = False
    """Score photographs that look alike once: the others get its mask, and name it in the column duplicate_of."""

    limit: Annotated[int, annotated_types.Ge(1)] | None = None
    """Take no more than this many images into the archive; a later run without a limit goes on with the rest."""

    cpus: Annotated[int, annotated_types.Ge(0)] = 0
    """Ask an autoscaling cluster for this many CPUs, and wait for them up to ten minutes; 0 takes what is there."""

    gpus: Annotated[int, annotated_types.Ge(0)] = 0
    """Ask an autoscaling cluster for this many GPUs; 0 takes what is there."""

    engine: EngineName = "auto"
    """Where the work runs: local (processes of this machine), ray (a cluster, or GPUs); auto takes ray where
    RAY_ADDRESS is set or there are GPUs. Decides no mask: a job begun on one goes on with the other."""

    @property
    def listed(self) -> Source:
        """What is listed, and how."""
        where = storage.locate(self.source)
        return Source(where, self.id_column, self.image_column, self.pairs, self.pages, self.frames)

    @property
    def predict(self) -> PredictParams:
        """What decides a mask, beside the model."""
        reading = Reading(self.raw, self.ignore_profiles)
        return PredictParams(self.inference, self.crf, self.crf_engine, self.mask_size, self.max_pixels, reading)


@dataclass(frozen=True)
class ArchivePlan:
    """What a job comes to: its run, and how much of it is left."""

    run_id: str
    model_name: str
    model_digest: str
    crf_engine: str
    images: int
    """Distinct images listed."""

    added: int
    """Images listed for the first time just now."""

    changed: int
    """Images that were replaced since they were listed, and were not asked to be refreshed."""

    refreshed: int
    remaining_units: int
    remaining_images: int


def list_archive(job: ArchiveJob, engine: Engine | None = None) -> ArchivePlan:
    """Add what the source holds to the manifest, and say what remains to be done.

    engine: starts meanwhile, where the run has not finished before.
    """
    output = Output.at(job.output)
    identity = identify(job)
    source = job.listed
    aside = LeftAside()

    def listed() -> dict[bytes, bool]:
        with storage.explained(output.place):
            return output.manifest(identity.source_id).parquet_files()

    entries = list_images(job, aside, listed)
    first = list(itertools.islice(entries, 1))  # A source that cannot be read ends here, before anything is started
    storage.require_writable(output.place)
    if engine is not None and output.record(identity.run_id).get("status") != runs.FINISHED:
        engine.prepare(unit_work(job, identity))
    with storage.explained(output.place):
        manifest = output.manifest(identity.source_id)
        entries = itertools.chain(first, entries)
        listing = extend(manifest, entries, refresh_changed=job.refresh_changed, limit=job.limit)
        if listing.added or listing.refreshed:
            manifest = output.manifest(identity.source_id)
    if told := aside.sentences():
        progress.say(told)
    if not manifest.num_images:
        raise JobError(f"{job.source} holds no images: is it the right folder or prefix? Hidden files do not count.")
    if listing.changed and not job.refresh_changed:
        progress.say(
            f"{listing.changed} photographs were replaced since they were listed; their rows are of the old ones. "
            "--refresh-changed does them again."
        )
    _say_what_changed(output, identity)
    with storage.explained(output.place):
        _require_listings(output, identity, manifest)
        _give_up_unread(output, identity.run_id)
    if identity.skip_duplicates:
        limits = limits_of(0.0, job.image_seconds, job.image_memory_mib)
        place = duplicates.place_of(output, identity.source_id, identity.predict)
        with storage.explained(output.place), engines.at_hand(job.engine, cpus=job.cpus, gpus=job.gpus):
            duplicates.find(manifest, source.location, place, identity.predict, limits)
    remaining = [piece.count() for piece in _remaining(manifest, output, identity)]
    if remaining:
        progress.say(_what_will_happen(job, identity, manifest.num_images, sum(remaining)))
    return ArchivePlan(
        run_id=identity.run_id,
        model_name=identity.model_name,
        model_digest=identity.model_digest,
        crf_engine=identity.predict.crf_engine,
        images=manifest.num_images,
        added=listing.added,
        changed=0 if job.refresh_changed else listing.changed,
        refreshed=listing.refreshed,
        remaining_units=len(remaining),
        remaining_images=sum(remaining),
    )


def list_images(
    job: ArchiveJob, aside: LeftAside | None = None, listed: Callable[[], Mapping[bytes, bool]] = dict
) -> Iterator[Entry]:
    """Every image of the source, as `list_source` does. Raises JobError where what looks into videos is not here."""
    source = job.listed
    if source.frames is not None:
        require_packages("--frames", "video", "av")
    limits = limits_of(0.0, job.image_seconds, job.image_memory_mib)
    within = functools.partial(inner_images, source=source, max_pixels=job.max_pixels, limits=limits)
    return list_source(source, storage.locate(job.output), aside, listed, within)


@dataclass(frozen=True)
class Identity:
    """What decides a mask, and the name that follows from it."""

    run_id: str
    model_name: str
    model_digest: str
    classes: tuple[str, ...]
    predict: PredictParams
    """What decides a mask, with the CRF engine that auto means here (without CRF it scales the scores up)."""

    source_id: str
    """Of the manifest: sources, and columns of a Parquet source, have one each."""

    unit_images: int
    """Images of one mask file at most: a function of the parameters alone, so that every session cuts alike."""

    work: float
    """What an image costs, that of LargeFOV at 513 px being 1."""

    deciding: dict[str, Any]
    """Everything that went into the run id."""

    skip_duplicates: bool = False

    colours: tuple[tuple[int, int, int], ...] = ()
    """RGB of each class in pictures and exports, where the model's card has them."""

    def copies(self, output: Output) -> Duplicates:
        """Which images are copies, as far as it is decided; none where the job does not ask."""
        if not self.skip_duplicates:
            return Duplicates({})
        return duplicates.load(duplicates.place_of(output, self.source_id, self.predict))


START_S = 4.0
"""Until the workers of the local engine have loaded torch and the model."""


def _what_will_happen(job: ArchiveJob, identity: Identity, images: int, remaining: int) -> str:
    """The first line of a job: how much is to be done with what, and how long that takes, roughly."""
    found = f"{images:,} image{'s' if images != 1 else ''}"
    found += "" if remaining == images else f", {remaining:,} of them to do"
    where = f"{found} in {job.source}; masks by {identity.model_name} go to {job.output}"
    # How large the images are is not known yet where they keep their size
    if job.inference.long_side_px is None or job.engine == "ray" or os.environ.get("RAY_ADDRESS"):
        return f"{where}."
    cores = len(os.sched_getaffinity(0))
    # Fitted to docs/benchmarks-archive.md: LargeFOV, whose work is 1, takes 0.75 s of a core with everything around it
    seconds = START_S + remaining * (0.25 + 0.5 * identity.work) / cores
    return f"{where}. On {cores} cores this takes roughly {progress.duration(seconds)}."


def _require_listings(output: Output, identity: Identity, manifest: Manifest) -> None:
    """Raises JobError where masks are of a listing that is gone: nobody could prove any more that they are whole.

    A person has removed it, or a power cut on a disk that had called it written when it was not.
    """
    look = output.look(identity.run_id)
    known = {segment.name for segment in manifest.segments}
    for segment in sorted((look.small.keys() | look.seals.keys()) - known - {""}):
        place = manifest.folder / f"{segment}.parquet"
        if not storage.exists(place):  # Another session may have listed it since
            held = [output.masks_folder(identity.run_id) / f"part-{segment}-*"] if segment in look.small else []
            held += [output.sealed_folder(identity.run_id) / f"{segment}-*"] if segment in look.seals else []
            masks = " and ".join(place.uri for place in held)
            raise JobError(
                f"{place.uri}, which lists the images of {masks}, is gone: bring it back from a copy, or remove these "
                "masks and run the same command again, which makes them anew."
            )


def _give_up_unread(output: Output, run_id: str) -> None:
    """Let units with RAW files that found no reader be done again, where one was installed since.

    Of a run that was compacted and expired they stay as they are.
    """
    record = output.record(run_id)
    if record.get("status") != runs.FINISHED or not record.get("errors", {}).get(ErrorKind.UNSUPPORTED):
        return
    again = 0
    small = itertools.chain.from_iterable(output.look(run_id).small.values())
    for file in [MaskFile(output.masks_folder(run_id) / f.path, f.size, f.version) for f in small]:
        reasons = [reason for table in Results.read_file(file, ["error"]) for reason in table["error"].to_pylist()]
        readable = sum(reason is not None and raw.is_readable_now(reason) for reason in reasons)
        if readable and not again:  # Readers know from now on that it is not whole
            runs.end(output.place, run_id, runs.STOPPED, None)
        if readable:
            storage.remove(file.place)
        again += readable
    if again:
        progress.say(f"{counted(again, 'RAW file')} had no reader, which is here now: their units are done again.")


def _say_what_changed(output: Output, identity: Identity) -> None:
    """Say so where an earlier version of the program had another run for the same job."""
    versions = ("pipeline_version", "schema_version")

    def asked(deciding: dict[str, Any]) -> Any:
        return _plain({name: value for name, value in deciding.items() if name not in versions})

    if output.record(identity.run_id):
        return
    for record in output.records():
        if asked(record.get("deciding") or {}) == asked(identity.deciding):
            progress.say(
                f"Run {record['run_id']} of this job is of an earlier version, whose masks may differ: a new run, "
                f"{identity.run_id}, begins beside it, and the old one stays readable."
            )
            return


def identify(job: ArchiveJob) -> Identity:
    """The run that a job is: equal for equal masks, another for anything that could change one.

    Reads the model's file, builds no network. Raises JobError for a model that is not there.
    """
    return _identify(job)


@functools.lru_cache(maxsize=8)
def _identify(job: ArchiveJob) -> Identity:
    try:
        card, digest = checkpoint.describe(local_model(job.model), untrained=job.untrained, seed=job.seed)
        predict = job.predict.resolved()
        require_usable(card, predict.inference)
        if predict.crf is not None and engines.choose(job.engine, cpus=job.cpus, gpus=job.gpus) == "local":
            dense_crf.require_engine(predict.crf_engine)
    except ValueError as error:
        raise JobError(str(error)) from None
    is_large = predict.inference.long_side_px is None or len(card.classes) > MOST_BYTE_CLASSES
    deciding = {
        "source": storage.locate(job.source).uri,
        "columns": job.listed.deciding,
        **predict.fingerprint(digest),
        "keep_mask_before_crf": job.keep_mask_before_crf,
        "schema_version": LARGE_SCHEMA_VERSION if is_large else SCHEMA_VERSION,
    }
    if job.skip_duplicates:
        deciding["duplicates"] = [near_duplicates.VERSION, near_duplicates.MAX_DISTANCE, near_duplicates.SAME_ASPECT]
    return Identity(
        run_id=_digest(deciding),
        source_id=source_id(storage.locate(job.source).uri, job.listed.deciding),
        model_name=card.shown_name,
        model_digest=digest,
        classes=card.classes,
        predict=predict,
        work=relative_work(job.inference, card.parameters),
        unit_images=_unit_images(job.inference, card.parameters),
        deciding=deciding,
        skip_duplicates=job.skip_duplicates,
        colours=card.colours,
    )


def _digest(value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """The same value however it was written: 4 and 4.0, tuple and list."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def mask_params(job: ArchiveJob, identity: Identity) -> MaskParams:
    """What the stages need to know of a job."""
    return MaskParams(
        model=job.model,
        untrained=job.untrained,
        seed=job.seed,
        model_name=identity.model_name,
        model_digest=identity.model_digest,
        classes=identity.classes,
        predict=identity.predict,
        limits=limits_of(identity.work, job.image_seconds, job.image_memory_mib),
        keep_mask_before_crf=job.keep_mask_before_crf,
        skip_duplicates=job.skip_duplicates,
        schema_version=version_of({"deciding": identity.deciding}),
    )


def unit_work(job: ArchiveJob, identity: Identity) -> UnitWork:
    """What an engine does to the units of a job."""
    output = Output.at(job.output)
    masks = output.masks_folder(identity.run_id)
    destination = Destination(masks, identity.run_id, storage.locate(job.source), output.place)
    return UnitWork(mask_params(job, identity), destination)


def units_of(part: Part, unit_images: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each unit of a part: the part itself, or equal slices where images are dear.

    Cut by what was listed, not by what is owned, so that a unit never changes its name or its place.
    """
    if part.num_listed <= unit_images:
        yield part.name, 0, part.num_listed
        return
    for number, start in enumerate(range(0, part.num_listed, unit_images)):
        yield f"{part.name}-{number:02d}", start, min(start + unit_images, part.num_listed)


COPIES = "-copies"
"""End of the name of a unit of copies; the images of the same piece that have masks of their own go without it."""


def remaining_units(manifest: Manifest, output: Output, identity: Identity) -> Iterator[Unit]:
    """Units of images with masks of their own that have no mask file yet, in the order of the manifest."""
    for piece in _remaining(manifest, output, identity):
        if not piece.are_copies:
            yield Unit(piece.name, piece.entries())


def remaining_copies(manifest: Manifest, output: Output, identity: Identity) -> Iterator[Unit]:
    """The same of copies: units whose originals all have their rows."""
    pieces = [piece for piece in _remaining(manifest, output, identity) if piece.are_copies]
    units = [(piece.name, {entry: piece.copies[entry.image_id] for entry in piece.entries()}) for piece in pieces]
    if units:
        for name, entries, copied in duplicates.with_rows(output, identity.run_id, units):
            yield Unit(name, entries, copied)


@dataclass(frozen=True)
class _Piece:
    """A unit without a mask file: images with masks of their own, or copies."""

    name: str
    part: Part
    start: int
    end: int
    copies: dict[str, Original]
    """What of the listed images are copies."""

    are_copies: bool = False

    def entries(self) -> tuple[Entry, ...]:
        """Its images."""
        entries = self.part.entries(self.start, self.end)
        return tuple(entry for entry in entries if (entry.image_id in self.copies) == self.are_copies)

    def count(self) -> int:
        """How many there are."""
        return len(self.entries()) if self.copies else self.part.count(self.start, self.end)


def _remaining(manifest: Manifest, output: Output, identity: Identity) -> Iterator[_Piece]:
    look = output.look(identity.run_id)
    committed, copies_of = look.names, identity.copies(output)
    for part in manifest.parts(leave_out=look.seals):
        for name, start, end in units_of(part, identity.unit_images):
            copies = copies_of.among(part, start, end)
            pieces = [_Piece(name, part, start, end, copies)]
            pieces += [_Piece(name + COPIES, part, start, end, copies, True)] if copies else []
            yield from (piece for piece in pieces if mask_file(piece.name) not in committed and piece.count())


def _unit_images(inference: InferenceParams, parameters: int) -> int:
    """Images of one file: 64 for LargeFOV at 513 px, fewer in proportion as an image costs more work or memory.

    Keeps the work between two commits to about a minute on one core, and a unit's pixels to about 50 MB.
    """
    if inference.long_side_px is None:  # An image may have thousands of windows
        return 1
    work = relative_work(inference, parameters)
    pixels = (inference.long_side_px / 513) ** 2
    return max(1, min(PART_IMAGES, int(PART_IMAGES / max(work, pixels))))


def require_no_web_address(source: str) -> None:
    """A web server lists nothing. Raises JobError that names the command for one photograph of it."""
    if source.startswith(("http://", "https://")):
        raise JobError(
            f"{source} is a web address, and an archive lies in a folder or a bucket: for one photograph, "
            f"segment-archive show {shlex.quote(source)}."
        )


def output_beside(source: str) -> str:
    """Where masks go if nobody says: SOURCE-masks, beside the source. JobError where there is no such place."""
    require_no_web_address(source)
    place = storage.locate(source)
    within = place.path.strip("/")
    if not within or (place.protocol != "file" and "/" not in within):
        raise JobError(f"There is no place beside {source} for the masks; name one: segment-archive run SOURCE OUTPUT.")
    return f"{place.uri.rstrip('/')}-masks"
