"""One owner of what lies where in an output, and of what it holds: runs, their files and records, manifests, reports.

    manifest/source=<source id>/    what a source holds, `manifest.py`
    masks/run=<run id>/             the small mask files of a run, one for each unit
    compacted/run=<run id>/         large files that stand for small ones, `seals.py`
    runs/<run id>.json              run records, `runs.py`
    labels/run=<run id>/            masks that are too large for a row, which names them
    png/run=<run id>/               masks as files of their own
    keywords/                       what sidecars beside the photographs were before their keywords
    looks/source=<source id>/       which images look alike, where a run skips duplicates
    report/run=<run id>/            galleries
    diff/<run id>-<run id>/         comparisons

Whoever needs a place, a record or a row of an output asks `Output`; nobody else spells these names.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks import storage
from tasks.archive import runs, seals
from tasks.archive.entries import Entry
from tasks.archive.manifest import REMEDY, Manifest, entries_of
from tasks.archive.seals import Seal
from tasks.errors import JobError
from tasks.parquet_files import read_parquet
from tasks.storage import Location, StoredFile

OWN = (
    *("manifest/source=", "masks/run=", "compacted/run=", "runs/", "labels/run=", "png/run=", "report/run="),
    *("keywords/", "looks/source=", "diff/"),
)
"""What the paths of an output's files begin with: in a source that is its own output, they are no photographs."""

_READERS = 8


@dataclass(frozen=True)
class MaskFile:
    """One Parquet file of a run."""

    place: Location
    size: int
    """Bytes."""

    version: str
    """Changes when the file is replaced."""


@dataclass(frozen=True)
class RunFiles:
    """What a run is made of: its small files, and the seals of those that large files stand for."""

    small: dict[str, list[StoredFile]]
    """Small files that are there by their segment, in the order of names; "" has what no unit is named like."""

    seals: dict[str, Seal]
    """By segment. What they stand for is not read from small files."""

    @property
    def names(self) -> set[str]:
        """Names of the small files that are there."""
        return {file.path for files in self.small.values() for file in files}

    def is_proved_by(self, record: dict[str, Any]) -> bool:
        """Whether a record knows all segments of the manifest that files are of; the earliest records name none."""
        proved = record.get("segments")
        return not isinstance(proved, list) or (self.small.keys() | self.seals.keys()) - {""} <= set(proved)

    @property
    def alone(self) -> dict[str, Seal]:
        """Seals that are no copies: their rows are nowhere else that counts."""
        return {segment: seal for segment, seal in self.seals.items() if seal.is_alone}


def source_id(source: str, columns: Sequence[str | None]) -> str:
    """Name of a source's manifest: of its URI, and of the columns of a Parquet source (identity and image)."""
    text = json.dumps([source, list(columns)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Output:
    """What `segment-archive run` writes, and where."""

    place: Location

    @classmethod
    def at(cls, uri: str) -> "Output":
        """The output of a URI."""
        return cls(storage.locate(uri))

    @property
    def uri(self) -> str:
        """URI of the output."""
        return self.place.uri

    # Places

    def manifest_folder(self, source: str) -> Location:
        """Folder of the segments that list a source. source: its `source_id`."""
        return self.place / "manifest" / f"source={source}"

    def masks_folder(self, run_id: str) -> Location:
        """Folder of a run's small files."""
        return self.place / "masks" / f"run={run_id}"

    def sealed_folder(self, run_id: str) -> Location:
        """Folder of the large files that stand for small ones."""
        return self.place / "compacted" / f"run={run_id}"

    def labels_folder(self, run_id: str) -> Location:
        """Folder of the masks of a run that are too large for a row."""
        return self.place / "labels" / f"run={run_id}"

    @staticmethod
    def label_name(run_id: str, entry: Entry) -> str:
        """What `mask_file` says of the mask of an image: relative to the output, another for each of its versions."""
        digest = hashlib.sha256(f"{entry.image_id}\0{entry.version}".encode("utf-8", "surrogateescape")).hexdigest()
        return f"labels/run={run_id}/{digest[:24]}.tif"

    def label_files(self, run_id: str) -> set[str]:
        """What `mask_file` may say: the masks of a run that lie beside their rows."""
        folder = self.labels_folder(run_id)
        return {f"labels/run={run_id}/{file.path}" for file in storage.list_files(folder)}

    def label_file(self, row: Mapping[str, Any]) -> Location | None:
        """The file of a mask that is too large for its row; None where the row has it, or none."""
        return None if row.get("mask_file") is None else self.place / str(row["mask_file"])

    def png_folder(self, run_id: str) -> Location:
        """Folder of a run's masks as files of their own."""
        return self.place / "png" / f"run={run_id}"

    def looks_folder(self, source: str, reading: str) -> Location:
        """Folder of what images look like. source: `source_id`. reading: digest of how they are read and compared."""
        return self.place / "looks" / f"source={source}" / reading

    def keywords_folder(self) -> Location:
        """Folder of what sidecars were before their keywords."""
        return self.place / "keywords"

    def gallery_folder(self, run_id: str) -> Location:
        """Folder of a run's gallery."""
        return self.place / "report" / f"run={run_id}"

    def diff_folder(self, run_a: str, run_b: str) -> Location:
        """Folder of a comparison."""
        return self.place / "diff" / f"{run_a}-{run_b}"

    def sweep(self) -> None:
        """Remove what killed sessions left half written."""
        for own in ("manifest", "masks", "labels", "runs", "png", "looks"):
            storage.sweep_temporary(self.place / own)

    # Runs

    def record(self, run_id: str) -> dict[str, Any]:
        """The record of a run, `runs.py`; empty where there is none."""
        return runs.read(self.place, run_id)

    def records(self) -> list[dict[str, Any]]:
        """The records of all runs, the one that finished last first, unfinished ones after those."""
        names = [f.path for f in storage.list_files(self.place / "runs") if f.path.endswith(".json")]
        with ThreadPoolExecutor(_READERS) as pool:
            records = pool.map(lambda name: self.record(name.removesuffix(".json")), names)
            known = [record for record in records if isinstance(record.get("run_id"), str)]
        finished = sorted((r for r in known if is_finished(r)), key=lambda r: str(r.get("finished")), reverse=True)
        others = sorted((r for r in known if not is_finished(r)), key=lambda r: str(r.get("started")), reverse=True)
        return finished + others

    def choose(self, run: str | None = None) -> dict[str, Any]:
        """The record of the run that is meant: the one that finished last, or the one named.

        run: its id, or an unmistakable beginning of it.
        Raises JobError where there is none, or where none has finished and none is named.
        """
        return self.choose_files(run)[0]

    def choose_files(self, run: str | None = None) -> tuple[dict[str, Any], "RunFiles"]:
        """The same record, and what the run is made of at this moment."""
        records = self.records()
        if not records:
            raise JobError(f"{self.uri} holds no run: is it the OUTPUT of `segment-archive run`?")
        told = ", ".join(f"{r['run_id']} ({r.get('status')})" for r in records[:8])
        told += " ..." if len(records) > 8 else ""
        if run is None:
            for record in filter(is_finished, records):
                record, look = self._as_it_stands(record)
                if is_finished(record):
                    return record, look
            raise JobError(f"No run of {self.uri} has finished; name one with --run to read what it has: {told}.")
        meant = [r for r in records if run and r["run_id"].startswith(run)]
        if len(meant) != 1:
            raise JobError(f"{self.uri} has {'no' if not meant else 'more than one'} run {run!r}; there are {told}.")
        return self._as_it_stands(meant[0])

    def _as_it_stands(self, record: dict[str, Any]) -> tuple[dict[str, Any], "RunFiles"]:
        """A record with what its run is made of; one that is finished is running again where files know more than it.

        A session that began before another has listed more may write its record last, and that other may be killed.
        Where the record is the same afterwards, files and seals are of one moment: a session that works between the two
        listings takes rows out of a seal that the first listing has not seen come.
        """
        while True:
            look = self.look(record["run_id"])
            if not is_finished(record):
                return record, look
            if (now := self.record(record["run_id"])) == record:
                return (record if look.is_proved_by(record) else record | {"status": runs.RUNNING}), look
            record = now

    # Rows

    def look(self, run_id: str) -> "RunFiles":
        """What a run is made of at this moment."""
        folder = self.masks_folder(run_id)
        # In this order: small files that are gone from the listing have a seal that is alone
        listed = sorted(storage.list_files(folder), key=lambda file: file.path)
        small: dict[str, list[StoredFile]] = {}
        for file in listed:
            if file.path.endswith(".parquet"):
                small.setdefault(seals.segment_of(file.path) or "", []).append(file)
        return RunFiles(small, seals.find(self.sealed_folder(run_id), small))

    def files(self, run_id: str, look: "RunFiles | None" = None) -> list[MaskFile]:
        """The files that make up a run, in the order of names: together they hold one row for each image."""
        look = look or self.look(run_id)
        masks, sealed = self.masks_folder(run_id), self.sealed_folder(run_id)
        found = [
            (file.path, MaskFile(masks / file.path, file.size, file.version))
            for segment, files in look.small.items()
            for file in files
            if segment not in look.seals
        ]
        for seal in look.seals.values():
            for file in seal.files:
                place = sealed / seal.prefix / file.path
                found.append((f"part-{seal.segment}-{file.path}", MaskFile(place, file.size, file.version)))
        return [file for _, file in sorted(found, key=lambda pair: pair[0])]

    # Sources

    def manifest(self, source: str) -> Manifest:
        """What a source holds. source: its `source_id`."""
        return Manifest(self.manifest_folder(source))

    def entries(self, record: dict[str, Any], image_ids: Sequence[str]) -> dict[str, Entry]:
        """Where the manifest of a run's own source has images: of each the listing that its row is of.

        record: of the run. Images of other sources in this output may have the same identities.
        """
        folder = self._manifest_of(record)
        if folder is None:
            return {}
        found: dict[str, Entry] = {}
        wanted = pa.array(image_ids, pa.string())
        for file in sorted(storage.list_files(folder), key=lambda f: f.path):
            if not file.path.endswith(".parquet"):
                continue
            table = read_parquet(folder / file.path, REMEDY)
            table = table.filter(pc.is_in(table["image_id"], wanted))
            refresh = (table.schema.metadata or {}).get(b"refresh") == b"1"
            for entry in entries_of(table):
                if refresh or entry.image_id not in found:
                    found[entry.image_id] = entry
        return found

    def _manifest_of(self, record: dict[str, Any]) -> Location | None:
        """Folder of the manifest of a run's source; None where it cannot be told."""
        deciding = record.get("deciding")
        if isinstance(deciding, dict) and isinstance(deciding.get("source"), str):
            return self.manifest_folder(source_id(deciding["source"], deciding.get("columns") or (None, None)))
        # Nothing says which it was: it is clear where there is one alone
        names = {f.path.partition("/")[0] for f in storage.list_files(self.place / "manifest")}
        return self.place / "manifest" / names.pop() if len(names) == 1 else None


def is_finished(record: dict[str, Any]) -> bool:
    """Whether every image of a run was proved to have its one row."""
    return record.get("status") == runs.FINISHED
