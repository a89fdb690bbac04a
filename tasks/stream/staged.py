"""The same unit in three pairs of hands, where scoring has a device of its own: read, score, finish.

Between them travel pixels at working size and scores of stride 8 in float16, or labels where the CRF runs on the GPU
too; never full-resolution probabilities. What is done to an image is in `worker.py`'s parts; a unit done whole has the
same rows.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segcore.crf.dense_crf import Refined
from segcore.images.decoding import Photograph
from segcore.images.errors import ImageError
from segcore.images.regions import TiffRegions
from segcore.scoring.inference import ScoreMap
from segcore.scoring.memory import DeviceShortError
from tasks.errors import JobError
from tasks.stream.rows import GREY, failure_of, give_back_memory
from tasks.stream.units import Record, Unit, UnitReport
from tasks.stream.worker import Beat, Here, UnitWorker, decoded


@dataclass
class Stage:
    """When a unit was handed on, and how long its stages have taken until then."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time by stage."""

    waits: dict[str, float] = field(default_factory=dict)
    """Time that the unit has waited before each stage, in s; between machines only as good as their clocks."""

    handed_on: float = 0.0
    """Of the clock of the machine, in s."""

    def waited(self, stage: str) -> dict[str, float]:
        """The waits, with that before a stage which begins now."""
        return {**self.waits, stage: max(0.0, time.time() - self.handed_on)}


@dataclass
class ReadUnit:
    """A unit whose images are decoded."""

    unit: Unit
    records: list[Record]
    """One for each image, with its error where there is one."""

    images: list[np.ndarray | TiffRegions]
    """(h, w, 3) uint8 RGB at working size, or what is read region by region, of the records without error."""

    stage: Stage
    committed: bool = False
    """Whether another session has committed it already; it is empty then."""


@dataclass(frozen=True)
class Finished:
    """What an image that needs windows has, which leave no scores."""

    columns: dict[str, Any]
    """Of its row."""

    note: str
    """What of it was damaged or ignored."""


@dataclass
class ScoredUnit:
    """What the network says of the images of a `ReadUnit`; labels, where the GPU has refined them."""

    maps: list[ScoreMap | Refined | ImageError | Finished]
    device: str
    stage: Stage


class StagedWorker(UnitWorker):
    """Does one stage of a unit, or, as any `UnitWorker`, all of them."""

    def release(self) -> None:
        """Give a GPU's memory back, which another process is to have."""
        if self.predictor.device.startswith("cuda"):
            self.predictor.release()

    def read_unit(self, unit: Unit, beat: Beat) -> ReadUnit:
        """Fetch and decode."""
        start = time.perf_counter()
        if self.is_committed(unit):
            return ReadUnit(unit, [], [], Stage(), committed=True)
        give_back_memory()
        read = ReadUnit(unit, [], [], Stage())
        here = Here(self, beat)
        for entry, data in here.bytes_of(self.work.destination.source, unit.entries):
            record = Record(entry)  # Of the bytes that were read, where they are newer than the listing
            try:
                photograph = decoded(record, data, here.decode)
                read.images.append(photograph.image if isinstance(photograph, Photograph) else photograph)
            except JobError:
                raise
            except Exception as error:
                record.error = failure_of("reading", error)
            read.records.append(record)
        read.stage = Stage({"read": time.perf_counter() - start}, {}, time.time())
        return read

    def score_unit(self, read: ReadUnit, beat: Beat) -> ScoredUnit:
        """Scores of all images, in batches; where a batch fails, of each alone."""
        start, waits = time.perf_counter(), read.stage.waited("score")
        beat("score")  # What comes before the first batch is watched too
        give_back_memory()
        maps: list[ScoreMap | Refined | ImageError | Finished] = []
        windowed = self._through_windows(read, beat)
        images = [
            image
            for number, image in enumerate(read.images)
            if number not in windowed and isinstance(image, np.ndarray)
        ]
        try:
            if images:
                maps += self.predictor.score(images, lambda: beat("score"))
        except (JobError, DeviceShortError):
            raise
        except Exception:  # One image may have spoilt its batch
            maps = [self._alone("score", image, None, beat) for image in images]
            if any(isinstance(scores, ImageError) for scores in maps):
                # Where a plain grey image fails too, it is not the images' fault, and no row may say so
                self.predictor.score([GREY])
        scored = time.perf_counter()
        if self.predictor.refines_on_gpu:
            self._refine(images, maps, beat)
        for number, finished in windowed.items():  # In the order of the images
            maps.insert(number, finished)
        seconds = {**read.stage.seconds, "score": scored - start, "refine": time.perf_counter() - scored}
        return ScoredUnit(maps, self.predictor.device, Stage(seconds, waits, time.time()))

    def _through_windows(self, read: ReadUnit, beat: Beat) -> dict[int, Finished | ImageError]:
        """What becomes of the images that need windows, by their number; they are refined here too, tile by tile."""
        done: dict[int, Finished | ImageError] = {}
        records = [record for record in read.records if record.error is None]
        for number, (record, image) in enumerate(zip(records, read.images, strict=True)):
            photograph = Photograph(image, record.width, record.height) if isinstance(image, np.ndarray) else image
            if self.predictor.in_windows(photograph) is None:
                continue
            try:
                self.last.begin([record])
                columns, note = self.through_windows(record, photograph, lambda: beat("score"))
                done[number] = Finished(columns, note or record.note)
            except (JobError, DeviceShortError):
                raise
            except Exception as error:
                if "CUDA error" in str(error):  # Which leaves the device unusable for its process
                    raise SystemExit(1) from None
                done[number] = failure_of("scoring", error)
        return done

    def _refine(
        self, images: list[np.ndarray], maps: list[ScoreMap | Refined | ImageError | Finished], beat: Beat
    ) -> None:
        """Put labels in the place of the scores, refined together; where that fails, each alone."""
        todo = [(number, image, scores) for number, (image, scores) in enumerate(zip(images, maps, strict=True))]
        whole = [(number, image, scores) for number, image, scores in todo if isinstance(scores, ScoreMap)]
        beat("refine")
        refined: list[Refined] | list[ScoreMap | Refined | ImageError]
        try:
            refined = self.predictor.refine_batch([image for _, image, _ in whole], [scores for _, _, scores in whole])
        except (JobError, DeviceShortError):
            raise
        except Exception:
            refined = [self._alone("refine", image, scores, beat) for _, image, scores in whole]
            if any(isinstance(labels, ImageError) for labels in refined):
                self.predictor.refine(GREY, self.predictor.score([GREY])[0])
        for (number, _, _), labels in zip(whole, refined, strict=True):
            maps[number] = labels

    def _alone(
        self, stage: str, image: np.ndarray, scores: ScoreMap | None, beat: Beat
    ) -> ScoreMap | Refined | ImageError:
        """Scores of one image, or labels of its scores, or why there are none."""
        beat(stage)
        try:
            return self.score(image) if scores is None else self.predictor.refine(image, scores)
        except (JobError, DeviceShortError):
            raise
        except Exception as error:
            if "CUDA error" in str(error):  # Which leaves the device unusable for its process
                raise SystemExit(1) from None
            return failure_of("scoring" if scores is None else self.last.what, error)

    def finish_unit(self, read: ReadUnit, scored: ScoredUnit, beat: Beat) -> UnitReport:
        """Refine, encode, commit."""
        start, waits = time.perf_counter(), scored.stage.waited("refine")
        report = UnitReport(read.unit.name)
        if read.committed:  # By another session of the same job
            return report
        give_back_memory()
        self.last.begin(read.records)
        usable = iter(zip(read.images, scored.maps, strict=True))
        rows: list[dict[str, Any]] = []
        for record in read.records:
            columns: dict[str, Any] = {}
            if record.error is None:
                image, scores = next(usable)
                try:
                    if isinstance(scores, ImageError):
                        raise scores
                    if isinstance(scores, Finished):
                        columns, record.note = scores.columns, scores.note
                        rows.append(self.last.base_row(record) | columns)
                        report.count(record)
                        continue
                    assert isinstance(image, np.ndarray), "what is read region by region has its columns by now"
                    beat("refine")
                    if isinstance(scores, Refined):
                        rows.append(self.last.base_row(record) | self.last.columns_of(record, scores, scored.device))
                        report.count(record)
                        continue
                    record.scores_shape, record.extent_px = scores.scores.shape, scores.extent_px
                    columns = self.last.columns(record, image, scores.scores, scored.device)
                except JobError:
                    raise
                except Exception as error:
                    record.error = failure_of(self.last.what, error)
            rows.append(self.last.base_row(record) | columns)
            report.count(record)
        self.commit(read.unit, rows, report, beat)
        seconds = scored.stage.seconds
        report.seconds = {**seconds, "refine": seconds.get("refine", 0.0) + time.perf_counter() - start}
        report.waits = waits
        return report
