import base64
import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.images.errors import ErrorKind
from tasks.archive.entry_bytes import read_entries
from tasks.archive.manifest import extend
from tasks.archive.output import Output
from tasks.archive.sources import LeftAside, Source, list_source
from tasks.errors import JobError
from tasks.storage import locate

JPEG = b"\xff\xd8\xff\xe0 of a photograph"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def run(place, **columns):
    """Contents by identity, and the sentences about what was left aside."""
    aside = LeftAside()
    entries = list(list_source(Source(locate(str(place)), **columns), aside=aside))
    found = {entry.image_id: data for entry, data in read_entries(locate(str(place)), entries)}
    assert len(found) == len(entries)
    return found, aside.sentences()


def write(place, **columns):
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), place)


def shard(place, *names):
    with tarfile.open(place, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))


def test_the_folder_of_img2dataset(field):
    found, said = run(field / "img2dataset_webdataset")
    assert len(found) == 4 and all(data[:2] == b"\xff\xd8" for data in found.values())
    assert said == (
        "Left aside: 2 .json files (00000_stats.json, ...), 2 Parquet files without images (00000.parquet, ...)."
    )


def test_a_hugging_face_dataset_without_identities(field):
    found, said = run(field / "parquet_without_id")
    splits = ("test", "train")
    assert set(found) == {f"data/{s}-00000-of-00001.parquet!/row {row}" for s in splits for row in range(3)}
    assert all(isinstance(data, bytes) for data in found.values()) and said == ""


def test_a_mixed_folder_gives_what_are_images(tmp_path):
    shard(tmp_path / "a.tar", "1.jpg", "1.json")
    (tmp_path / "loose.jpg").write_bytes(JPEG)
    write(tmp_path / "rows.parquet", image=pa.array([JPEG]))
    write(tmp_path / "labels.parquet", file_name=["loose.jpg"], label=[3])
    write(tmp_path / "paths.parquet", image=["loose.jpg"])  # Names photographs that lie beside it
    for name in ("README.md", "dataset_infos.json", "a_stats.json"):
        (tmp_path / name).write_text("about it")
    found, said = run(tmp_path)
    assert found == {"a.tar!/1.jpg": JPEG, "loose.jpg": JPEG, "rows.parquet!/row 0": JPEG}
    assert "2 .json files" in said and "1 .md file" in said and "2 Parquet files without images" in said


def test_metadata_alone_names_the_columns(tmp_path):
    write(tmp_path / "00000.parquet", url=["http://x/1.jpg"], caption=["a cat"])
    (tmp_path / "00000_stats.json").write_text("{}")
    with pytest.raises(JobError, match=r"00000.parquet has no column of images; it has url, caption.*--image-column"):
        run(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["image", "img", "jpg", "bytes", "image_bytes", "data", "content", "Image", "JPG", "photo", "png", "webp"],
)
def test_usual_column_names(tmp_path, name):
    write(tmp_path / "a.parquet", label=[1, 2], **{name: pa.array([JPEG, JPEG + b"2"])})
    assert run(tmp_path)[0] == {"a.parquet!/row 0": JPEG, "a.parquet!/row 1": JPEG + b"2"}


def test_types_that_hold_bytes(tmp_path):
    for number, values in enumerate(
        (
            pa.array([JPEG], pa.large_binary()),
            pa.array([JPEG], pa.binary(len(JPEG))),
            pa.array([JPEG]).dictionary_encode(),
            pa.array([{"bytes": JPEG, "path": "a.jpg"}], IMAGE),
            pa.array([{"path": None, "bytes": JPEG}], pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])),
            pa.array([{"origin": "x", "data": JPEG}], pa.struct([("origin", pa.string()), ("data", pa.binary())])),
            pa.array([[{"bytes": JPEG, "path": "a.jpg"}]], pa.list_(IMAGE)),
            pa.array([[JPEG]], pa.list_(pa.binary())),
            pa.array([list(JPEG)], pa.list_(pa.uint8())),
            pa.array([base64.b64encode(b"\xff\xd8\xff\xe0" + JPEG).decode()]),
            pa.array(["data:image/jpeg;base64," + base64.b64encode(JPEG).decode()]),
        )
    ):
        place = tmp_path / str(number) / "a.parquet"
        write(place, image=values)
        found, _ = run(place.parent)
        assert found["a.parquet!/row 0"].removeprefix(b"\xff\xd8\xff\xe0\xff") in (JPEG, JPEG[1:]), values.type


def test_a_column_of_images_under_a_name_of_its_own(tmp_path):
    write(tmp_path / "a" / "a.parquet", digest=pa.array([b"\1\2"]), shot=pa.array([JPEG]))
    assert run(tmp_path / "a")[0] == {"a.parquet!/row 0": JPEG}
    write(tmp_path / "b" / "b.parquet", mask=pa.array([{"bytes": b"m", "path": ""}], IMAGE), scene=pa.array([JPEG]))
    assert run(tmp_path / "b", image_column="scene")[0] == {"b.parquet!/row 0": JPEG}
    features = {"info": {"features": {"shot": {"_type": "Image"}, "label": {"dtype": "int64"}}}}
    table = pa.table({"label": [1], "shot": pa.array([{"bytes": JPEG, "path": "x"}], IMAGE)})
    (tmp_path / "c").mkdir()
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "c" / "c.parquet")
    assert run(tmp_path / "c")[0] == {"c.parquet!/row 0": JPEG}
    write(tmp_path / "d" / "d.parquet", embedding=pa.array([b"\1" * 64]), text=["x"])
    with pytest.raises(JobError, match="has no column of images; it has embedding, text"):
        run(tmp_path / "d")


def test_nested_fields_can_be_named(tmp_path):
    rows = [{"bytes": JPEG, "path": "one.jpg"}, {"bytes": JPEG, "path": "two.jpg"}, None]
    write(tmp_path / "a.parquet", picture=pa.array(rows, IMAGE), label=[1, 2, 3])
    found, _ = run(tmp_path, image_column="picture.bytes", id_column="picture.path")
    assert found["one.jpg"] == found["two.jpg"] == JPEG and found["a.parquet!/row 2"].kind is ErrorKind.EMPTY
    with pytest.raises(JobError, match=r"no column 'picture.name'; it has picture.bytes, picture.path, label"):
        run(tmp_path, id_column="picture.name")


def test_rows_that_name_a_file_say_so(tmp_path):
    write(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": "train/0.jpg"}, None], IMAGE))
    found, _ = run(tmp_path)
    assert "'train/0.jpg'" in str(found["a.parquet!/row 0"]) and "to_parquet" in str(found["a.parquet!/row 0"])
    assert str(found["a.parquet!/row 1"]) == "the image column is null in this row"
    write(tmp_path / "a.parquet", image=["http://example.org/1.jpg", "0.jpg"])
    found, _ = run(tmp_path)
    assert all("holds text" in str(error) for error in found.values())
    write(tmp_path / "a.parquet", images=pa.array([[JPEG, JPEG], []], pa.list_(pa.binary())))
    found, _ = run(tmp_path)
    assert "2 values in one list" in str(found["a.parquet!/row 0"])
    assert found["a.parquet!/row 1"].kind is ErrorKind.EMPTY


def test_identities_of_several_files(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "same" / f"{split}.parquet", id=[0, 1], image=pa.array([JPEG, JPEG]))
        write(tmp_path / "own" / f"{split}.parquet", id=[f"{split}-0", f"{split}-1"], image=pa.array([JPEG, JPEG]))
    found, said = run(tmp_path / "same")
    assert set(found) == {f"{s}.parquet!/row {row}" for s in ("train", "test") for row in (0, 1)}
    assert said.startswith("Values of the column id stand in more than one Parquet file")
    found, said = run(tmp_path / "own")
    assert set(found) == {"train-0", "train-1", "test-0", "test-1"} and said == ""
    shutil.copy(tmp_path / "own" / "test.parquet", tmp_path / "single.parquet")
    assert set(run(tmp_path / "single.parquet")[0]) == {"test-0", "test-1"}


def test_containers_that_are_not_read_name_the_remedy(tmp_path):
    for name in ("data-00000-of-00001.arrow", "train.tfrecord", "photos.7z"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    found, _ = run(tmp_path)
    assert found.pop("a.jpg") == JPEG and len(found) == 3
    assert "to_parquet" in str(found["data-00000-of-00001.arrow"]) and "unpack it" in str(found["photos.7z"])


def test_rows_keep_the_identity_they_were_listed_with(tmp_path):
    """A file that joins the source later and makes the ids repeat gives no image a second row."""
    source, output = tmp_path / "source", Output.at(str(tmp_path / "out"))

    def listing():
        said = LeftAside()
        manifest = output.manifest("s")
        entries = list_source(Source(locate(str(source))), aside=said, listed=manifest.parquet_files)
        extend(manifest, entries)
        manifest = output.manifest("s")
        return sorted(i for part in manifest.parts() for i in part.image_ids()), said.sentences()

    write(source / "a.parquet", id=[1, 2], image=pa.array([JPEG, JPEG]))
    assert listing() == (["1", "2"], "")
    write(source / "b.parquet", id=[None, "3"], image=pa.array([JPEG, JPEG]))
    assert listing() == (["1", "2", "3", "b.parquet!/row 0"], "")
    write(source / "a0.parquet", id=["2", "4"], image=pa.array([JPEG, JPEG]))  # "2" is the number 2 of a.parquet
    found, said = listing()
    assert found == ["1", "2", "3", "a0.parquet!/row 0", "a0.parquet!/row 1", "b.parquet!/row 0"]
    assert said.startswith("Values of the column id stand in more than one Parquet file")
    write(source / "c.parquet", id=["5"], image=pa.array([JPEG]))
    assert listing() == (sorted([*found, "c.parquet!/row 0"]), "")
    assert listing() == (sorted([*found, "c.parquet!/row 0"]), "")


def test_a_row_and_a_file_of_one_name_are_two_images(tmp_path):
    source, output = tmp_path / "source", Output.at(str(tmp_path / "out"))
    write(source / "t.parquet", path=["a.jpg", "b.jpg"], image=pa.array([JPEG, JPEG]))
    (source / "a.jpg").write_bytes(JPEG)
    found, said = run(source)
    assert set(found) == {"a.jpg", "t.parquet!/row 0", "t.parquet!/row 1"} and said.startswith("The name a.jpg is")
    with pytest.raises(JobError, match=r"'a\.jpg' is the identity of a row .* the name of a file.*--id-column"):
        run(source, id_column="path")
    (source / "a.jpg").unlink()
    extend(output.manifest("s"), list_source(Source(locate(str(source)))))
    assert output.manifest("s").parquet_files() == {str(source / "t.parquet").encode(): True}
    (source / "a.jpg").write_bytes(JPEG)  # The row is listed by the name that a photograph has now
    with pytest.raises(JobError, match=r"'a\.jpg' is the identity of a row"):
        list(list_source(Source(locate(str(source))), listed=output.manifest("s").parquet_files))
