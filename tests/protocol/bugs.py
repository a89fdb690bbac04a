"""Faults planted in the protocol: each of them a way in which it could have been written, and each must be found.

Every one replaces a few lines of the program, or takes a call from the simulated disk, for as long as it is planted.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks import storage
from tasks.archive import entry_bytes, manifest, seals
from tasks.archive.manifest import Manifest
from tasks.archive.output import Output, RunFiles
from tasks.results import reading, sealing
from tasks.segmentation import finish, verify
from tasks.segmentation.outcome import ArchiveReport
from tasks.stream import units
from tests.protocol import history
from tests.protocol.store import Disk, Inode
from tests.protocol.turns import Weather

_Plant = Callable[[Callable[[object, str, object], None]], None]


@dataclass(frozen=True)
class Bug:
    """A planted fault."""

    name: str
    what: str
    plant: _Plant
    """Given what replaces an attribute of a module or class."""

    needs: Mapping[str, Any] = field(default_factory=dict)
    """Of a `Plan`, what it shows in: it is hunted in histories of such plans alone."""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Within, the program has it, and had it when it wrote what a history begins with."""
        kept: list[tuple[Any, str, object]] = []

        def put(owner: Any, name: str, value: object) -> None:
            kept.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

        history.written_before.cache_clear()
        self.plant(put)
        try:
            yield
        finally:
            history.written_before.cache_clear()
            for owner, name, value in reversed(kept):
                setattr(owner, name, value)


def _seal_before_files(put: Any) -> None:
    write = sealing._write_file

    def early(place: Any, *what: Any) -> Any:
        folder = storage.Location(place.protocol, place.path.rpartition("/")[0])
        storage.write_whole(folder / seals.seal_name(1), b"{}")
        sealing._make_alone(folder)
        return write(place, *what)

    put(sealing, "_write_file", early)


def _name_without_run(put: Any) -> None:
    put(Output, "masks_folder", lambda output, run_id: output.place / "masks" / "run=any")


def _name_of_session(put: Any) -> None:
    # Beside the name of another session's file for the same part
    put(units, "mask_file", lambda unit: f"part-{unit}-{storage.uuid.uuid4().hex[:4]}.parquet")


def _no_fsync_of_files(put: Any) -> None:
    fsync = Disk.fsync
    put(Disk, "fsync", lambda disk, n: None if isinstance(disk._handles[n], Inode) else fsync(disk, n))


def _no_fsync_of_names(put: Any) -> None:
    put(storage, "_sync_folder", lambda folder: None)


def _no_fsync_of_new_folders(put: Any) -> None:
    put(storage, "_make_folder", lambda folder, durable: folder.mkdir(parents=True, exist_ok=True))


def _written_in_place(put: Any) -> None:
    def in_place(target: Any, chunks: Any, **_: object) -> None:
        storage._make_folder(target.parent, durable=True)
        with target.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            storage.os.fsync(file.fileno())
        storage._sync_folder(target.parent)

    put(storage, "_put_file", in_place)


def _expire_without_grace(put: Any) -> None:
    put(sealing, "_older_than", lambda facts, minutes: True)


def _removed_before_alone(put: Any) -> None:
    put(sealing, "_make_alone", lambda place: True)


def _any_seal_counts(put: Any) -> None:
    find = seals.find
    put(sealing, "unseal", lambda *_: None)
    put(seals, "find", lambda folder, small: find(folder, {}))


def _seals_listed_first(put: Any) -> None:
    look, by_prefix = Output.look, seals.by_prefix

    def late(output: Output, run_id: str) -> Any:
        folder = output.sealed_folder(run_id)
        early = by_prefix(folder)
        small = look(output, run_id).small
        seals.by_prefix = lambda folder: early  # Nobody else has a turn meanwhile
        try:
            return RunFiles(small, seals.find(folder, small))
        finally:
            seals.by_prefix = by_prefix

    put(Output, "look", late)


def _every_listing_owns(put: Any) -> None:
    put(Manifest, "owned", property(lambda manifest: np.ones(len(manifest._ids), dtype=bool)))


def _refresh_forgotten(put: Any) -> None:
    write = manifest._write_segment
    put(manifest, "_write_segment", lambda *a, refresh: write(*a, refresh=False))


def _commit_overwrites(put: Any) -> None:
    put(storage, "write_once", lambda place, data: [storage.write_whole(place, data)])


def _listing_is_truth(put: Any) -> None:
    put(verify, "segment_names", _Same)


class _Same:
    """Equal to whatever it is compared with."""

    def __init__(self, folder: object) -> None:
        pass

    def __ne__(self, other: object) -> bool:
        return False


def _rows_of_others_stay(put: Any) -> None:
    put(verify, "_drop_foreign", lambda *_: None)


def _dropped_before_proved(put: Any) -> None:
    check = verify._check_all

    def eager(output: Any, identity: Any, *more: Any) -> Any:
        found = check(output, identity, *more)
        for held, wanted in found[2]:
            verify._drop_foreign(output, identity.run_id, held, wanted, len(found[0].segments))
        return found

    put(verify, "_check_all", eager)


def _nothing_stands_for_dropped(put: Any) -> None:
    drop = verify._drop_foreign

    def removed(output: Any, run_id: str, held: Any, wanted: set[str], segments: int) -> None:
        if held.seal is None and not wanted:
            storage.remove(held.places[0])
        else:
            drop(output, run_id, held, wanted, segments)

    put(verify, "_drop_foreign", removed)


def _newer_is_leftover(put: Any) -> None:
    def remove(folder: Any, seal: Any, held: object) -> None:
        for prefix, names in seals.by_prefix(folder).items():
            if prefix.startswith(f"{seal.segment}-") and prefix != seal.prefix:
                for name in sorted(names, key=lambda name: name.endswith(".parquet")):
                    storage.remove(folder / prefix / name)

    put(sealing, "_remove_others", remove)


def _finished_unproved(put: Any) -> None:
    def trusting(output: Output, identity: Any) -> ArchiveReport:
        names = manifest.segment_names(output.manifest_folder(identity.source_id))
        return ArchiveReport(identity.run_id, output.uri, identity.model_name, segments=names)

    put(finish, "check_run", trusting)


def _version_of_listing(put: Any) -> None:
    put(entry_bytes, "replace", lambda entry, **_: entry)


def _record_is_truth(put: Any) -> None:
    put(Output, "_as_it_stands", lambda output, record: (record, output.look(record["run_id"])))


def _names_are_files(put: Any) -> None:
    opened = storage.open_for_reading
    put(storage, "open_for_reading", lambda place, sparse=False, version="": opened(place, sparse=sparse))
    put(reading.storage, "_require_version", lambda *_: None)


def _sessions(stay: float = 0.5, pause: float = 0.05, **more: Any) -> dict[str, Any]:
    """Sessions that nothing but waiting disturbs, so that they meet in rare moments."""
    return {"conditional": "honoured", "stale": 0.0, "other": False, "weather": Weather(stay, pause=pause)} | more


# A finished run is sealed and expired while it is read
_EXPIRED = _sessions(0.8, 0.03, start="finished", jobs=(False,), changes=0, sealings=3, readers=8)
# Photographs are replaced while sessions work that know of it and sessions that do not
_REFRESHED = _sessions(start="nothing", jobs=(False, False, True), changes=3, sealings=0)
_REFRESHED_AND_PROVED = _sessions(0.97, 0.03, start="finished", jobs=(False, False, False, True), changes=6, sealings=0)
_REFRESHED_AND_READ = _sessions(0.7, 0.03, start="finished", jobs=(True,), changes=3, sealings=0, readers=8)
_REFRESHED_AND_SEALED = _sessions(0.5, 0.03, start="expired", jobs=(True, True), changes=3, sealings=3, readers=0)

BUGS = (
    Bug("seal-before-files", "the seal that stands alone is written before its files", _seal_before_files),
    Bug("name-without-run", "mask files of all runs lie in one folder", _name_without_run),
    Bug("name-of-session", "a file's name says who wrote it, not only which part it is", _name_of_session),
    Bug("no-fsync-of-files", "a file is renamed without fsync of its bytes", _no_fsync_of_files),
    Bug("no-fsync-of-names", "a file is renamed without fsync of its folder", _no_fsync_of_names),
    Bug("no-fsync-of-folders", "a new folder's own name is not made durable", _no_fsync_of_new_folders),
    Bug("written-in-place", "a file is written under its final name", _written_in_place),
    Bug(
        "expire-without-grace",
        "small files go as soon as a seal stands for them",
        _expire_without_grace,
        needs=_EXPIRED,
    ),
    Bug(
        "removed-before-alone",
        "small files go before the mark that they do not count",
        _removed_before_alone,
        needs=_EXPIRED,
    ),
    Bug("any-seal-counts", "a seal counts whatever small files are there, and is never taken back", _any_seal_counts),
    Bug(
        "seals-listed-first",
        "a reader lists the seals first, and the small files then",
        _seals_listed_first,
        needs=_EXPIRED | {"weather": Weather(0.8, pause=0.05)},
    ),
    Bug("every-listing-owns", "an image belongs to every segment that lists it", _every_listing_owns),
    Bug("refresh-forgotten", "a segment does not say that it lists images again", _refresh_forgotten),
    Bug(
        "commit-overwrites",
        "the last commit of a unit wins, not the first",
        _commit_overwrites,
        needs=_REFRESHED,
    ),
    Bug(
        "nothing-for-dropped",
        "a file all of whose rows go is removed, not emptied",
        _nothing_stands_for_dropped,
        needs=_REFRESHED,
    ),
    Bug(
        "listing-is-truth",
        "the proof trusts the manifest that it listed at first",
        _listing_is_truth,
        needs=_REFRESHED_AND_PROVED,
    ),
    Bug("rows-of-others-stay", "rows that a refresh has given away stay", _rows_of_others_stay),
    Bug("dropped-before-proved", "rows that were given away go before the new ones are there", _dropped_before_proved),
    Bug(
        "newer-is-leftover",
        "a sealing removes what replaces the seal that it has found",
        _newer_is_leftover,
        needs=_REFRESHED_AND_SEALED,
    ),
    Bug("finished-unproved", "a run is called finished without a proof", _finished_unproved),
    Bug("version-of-listing", "a row says the version that was listed, whatever was read", _version_of_listing),
    Bug("record-is-truth", "a record is believed though files know more", _record_is_truth, needs=_REFRESHED),
    Bug(
        "names-are-files",
        "a reader takes what is under a name by now for what it listed",
        _names_are_files,
        needs=_REFRESHED_AND_READ,
    ),
)
