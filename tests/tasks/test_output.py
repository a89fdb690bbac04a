"""The owner of an output: what belongs to which run and to which source."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import storage
from tasks.archive import runs
from tasks.archive.entries import Entry
from tasks.archive.manifest import extend
from tasks.archive.output import OWN, Output, source_id
from tasks.archive.sources import Source, list_source
from tasks.errors import JobError
from tasks.results.photographs import Photographs
from tasks.results.reading import open_results
from tests.outputs import mask_row, write_run


def jpeg(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_tar(place: Path, members: dict[str, bytes]) -> str:
    place.parent.mkdir(parents=True)
    with tarfile.open(place, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(place.parent)


@pytest.mark.parametrize("first", [0, 1])
def test_equal_identities_of_two_sources_are_two_photographs(first, tmp_path):
    """Both sources hold shard.tar with a.jpg: each run shows its own, whichever was listed first."""
    output = Output.at(str(tmp_path / "output"))
    colours = [(200, 0, 0), (0, 0, 200)]
    sources = [
        write_tar(tmp_path / f"source{n}" / "shard.tar", {"a.jpg": jpeg(colours[n]), "b.jpg": jpeg((0, 99, 0))})
        for n in range(2)
    ]
    for number in (first, 1 - first):
        source = storage.locate(sources[number])
        entries = list(list_source(Source(source), leave_out=output.place))
        extend(output.manifest(source_id(source.uri, [None, None])), iter(entries))
        rows = [mask_row(e.image_id, e.uri, np.ones((10, 20), np.uint8)) for e in entries]
        facts = {"deciding": {"source": source.uri, "columns": [None, None]}, "job": {"source": source.uri}}
        write_run(output.uri, f"run{number}", rows, **facts)
    for number in range(2):
        results = open_results(output.uri, f"run{number}")
        asked = list(results.rows(["image_id", "uri"]))
        read = {row["image_id"]: data for row, data in Photographs(results).read(asked)}
        assert read == {"shard.tar!/a.jpg": jpeg(colours[number]), "shard.tar!/b.jpg": jpeg((0, 99, 0))}


def test_a_source_is_known_without_a_word_of_it_where_there_is_one(tmp_path):
    output = Output.at(str(tmp_path))
    entry = Entry("a.jpg", "/a.jpg", "file", b"/a.jpg", 0, 1, "1")
    extend(output.manifest("one"), iter([entry]))
    assert output.entries({}, ["a.jpg", "b.jpg"]) == {"a.jpg": entry}
    extend(output.manifest("two"), iter([entry]))
    assert output.entries({}, ["a.jpg"]) == {}


def test_an_image_that_was_listed_again_is_read_as_it_was_listed_last(tmp_path):
    output = Output.at(str(tmp_path))
    for version in ("1", "2", "3"):
        entry = Entry("a.jpg", "/a.jpg", "file", b"/a.jpg", 0, 1, version)
        extend(output.manifest("one"), iter([entry]), refresh_changed=version == "2")
    assert output.entries({}, ["a.jpg"])["a.jpg"].version == "2"


def test_runs_are_told_by_their_records(tmp_path):
    output = Output.at(str(tmp_path))
    with pytest.raises(JobError, match="holds no run"):
        output.choose()
    runs.begin(output.place, "abc1", {})
    with pytest.raises(JobError, match=r"No run of .* has finished"):
        output.choose()
    runs.end(output.place, "abc2", runs.FINISHED, None)
    assert output.choose()["run_id"] == "abc2" and output.choose("abc1")["run_id"] == "abc1"
    with pytest.raises(JobError, match="more than one run 'abc'"):
        output.choose("abc")


def test_an_output_in_its_own_source_holds_no_photographs(tmp_path):
    """Galleries hold pictures: the next listing of a source that is its own output does not take them."""
    output = Output.at(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(jpeg((1, 2, 3)))
    places = [output.gallery_folder("r"), output.diff_folder("a", "b"), output.png_folder("r")]
    for place in places:
        storage.write_whole(place / "data/photo.jpg", jpeg((1, 2, 3)))
    assert len({place.uri for place in places}) == 3
    found = list(list_source(Source(output.place), leave_out=output.place))
    assert [entry.image_id for entry in found] == ["a.jpg"]
    for place in (*places, output.masks_folder("r"), output.manifest_folder("s"), runs.record_of(output.place, "r")):
        assert place.path.removeprefix(output.place.path).lstrip("/").startswith(OWN)
