import io
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from segcore.images import masks
from tasks import progress, storage
from tasks.archive import runs
from tasks.archive.manifest import Manifest
from tasks.archive.output import Output
from tasks.archive.schema import version_of, written
from tasks.errors import JobError
from tasks.results.reading import open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive, units_of
from tasks.segmentation.finish import publish_report
from tasks.segmentation.session import segment_remaining
from tasks.segmentation.verify import check_run
from tasks.storage import locate
from tasks.stream.rows import write_rows
from tests.conftest import photograph
from tests.raw_files import dng, picture

pytestmark = pytest.mark.usefixtures("local_engine")


def job_of(source, output, **options):
    options = {
        "model": "deeplab_v1_largefov",
        "untrained": True,
        "inference": {"long_side_px": 65, "precision": "fp32"},
    } | options
    return ArchiveJob(source=str(source), output=str(output), **options)


def run(job):
    plan = list_archive(job)
    session = segment_remaining(job, plan)
    return publish_report(job, plan, session)


def rows_of(report):
    folder = Output.at(report.output).masks_folder(report.run_id)
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(folder / f.path))) for f in storage.list_files(folder)]
    for table in tables:
        assert table.schema.equals(written(version_of(Output.at(report.output).record(report.run_id))))
        assert all(field.metadata[b"description"] for field in table.schema)
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def test_every_image_gets_one_row_and_a_second_run_does_nothing(photographs, tmp_path):
    (photographs / "empty.jpg").write_bytes(b"")
    (photographs / "notes.txt").write_text("no photograph")
    photograph(9, (200, 120)).save(photographs / "large.png")
    job = job_of(photographs, tmp_path / "out")
    report = run(job)
    assert (report.images, report.masks, report.errors) == (9, 7, {"empty": 1, "not_an_image": 1})
    rows = rows_of(report)
    assert len(rows) == 9
    for image_id, row in rows.items():
        assert row["run_id"] == report.run_id and row["model"] == "deeplab_v1_largefov (untrained)"
        assert (row["mask"] is None) == (row["error_kind"] is not None) == (row["error"] is not None)
        if row["mask"] is None:
            continue
        labels = masks.decode_mask(row["mask"])
        assert labels.shape == (row["height"], row["width"]) and labels.max() <= 20
        assert row["device"] == "cpu/fp32" and row["source_size"] == (photographs / image_id).stat().st_size
        assert sum(c["pixels"] for c in row["classes"]) == labels.size
        for entry in row["classes"]:
            y, x = np.nonzero(labels == entry["index"])
            box = entry["box"]
            assert (box["x0"], box["y0"], box["x1"], box["y1"]) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert 0 < entry["confidence"] <= 1
        assert 0 < row["confidence"] <= 1 and 0 <= row["entropy"] <= np.log(21) and 0 <= row["changed_by_crf"] <= 1
    assert (rows["large.png"]["width"], rows["large.png"]["height"]) == (200, 120)

    record = runs.read(locate(job.output), report.run_id)
    assert (record["status"], record["images"], record["masks"]) == ("finished", 9, 7)
    assert set(record["sessions"][0]["stages"]) == {"read", "score", "refine"}
    assert record["job"]["untrained"] is True and record["model_digest"]

    plan = list_archive(job)
    assert (plan.added, plan.remaining_units) == (0, 0)
    again = publish_report(job, plan, segment_remaining(job, plan))
    assert (again.done_now, again.images, again.masks, again.errors) == (0, 9, 7, report.errors)
    assert again.classes == report.classes


def test_new_images_are_done_and_nothing_else_is_touched(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out", crf=None)
    first = run(job)
    folder = tmp_path / "out" / "masks" / f"run={first.run_id}"
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    photograph(20, (64, 48)).save(photographs / "a-new-one.png")
    second = run(job)
    assert (second.run_id, second.images, second.done_now) == (first.run_id, 7, 1)
    after = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_a_lost_file_is_done_again_with_equal_rows(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out")
    report = run(job)
    before = rows_of(report)
    folder = tmp_path / "out" / "masks" / f"run={report.run_id}"
    next(iter(folder.iterdir())).unlink()
    with pytest.raises(JobError, match=r"images have no row: .*photo-.*Run the same command again"):
        check_run(Output.at(job.output), identify(job))
    assert 0 < run(job).done_now < 6
    assert rows_of(report) == before


def test_other_parameters_are_another_run_beside_the_first(photographs, tmp_path):
    first = run(job_of(photographs, tmp_path / "out"))
    options = {"crf": None, "mask_size": "working", "png": True, "keep_mask_before_crf": True}
    second = run(job_of(photographs, tmp_path / "out", **options))
    assert first.run_id != second.run_id
    assert len(rows_of(first)) == len(rows_of(second)) == 6
    plain, sharp = rows_of(second)["photo-0.jpg"], rows_of(first)["photo-0.jpg"]
    assert plain["changed_by_crf"] == 0 and plain["mask_before_crf"] == plain["mask"]
    assert sharp["mask_before_crf"] is None
    png = tmp_path / "out" / "png" / f"run={second.run_id}" / "more" / "photo-5.png"
    assert png.read_bytes() == rows_of(second)["more/photo-5.jpg"]["mask"]


def test_the_run_is_what_decides_a_mask(photographs, tmp_path):
    base = job_of(photographs, tmp_path / "out")
    same = [{"png": True}, {"limit": 3}, {"refresh_changed": True}]
    other = [
        {"crf": None},
        {"crf": {"iterations": 5}},
        {"crf_engine": "pydensecrf"},
        {"seed": 1},
        {"inference": {"long_side_px": 66}},
        {"inference": {"long_side_px": 65, "precision": "bf16"}},
        {"mask_size": "working"},
        {"max_pixels": 10_000},
        {"raw": "full"},
        {"ignore_profiles": True},
        {"source": str(tmp_path)},
    ]
    for change in same:
        assert identify(job_of(photographs, tmp_path / "out", **change)).run_id == identify(base).run_id
    changed = [identify(ArchiveJob.model_validate({**base.model_dump(), **change})).run_id for change in other]
    assert len({identify(base).run_id, *changed}) == len(other) + 1
    assert identify(job_of(photographs, tmp_path / "elsewhere")).run_id == identify(base).run_id


def test_two_sources_in_one_output_stay_apart(photographs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    photograph(77, (64, 48)).save(other / "photo-0.jpg", quality=95)
    first, second = run(job_of(photographs, tmp_path / "out")), run(job_of(other, tmp_path / "out"))
    assert (first.images, second.images) == (6, 1)
    assert rows_of(second)["photo-0.jpg"]["uri"] == str(other / "photo-0.jpg")
    assert rows_of(first)["photo-0.jpg"]["mask"] != rows_of(second)["photo-0.jpg"]["mask"]


def test_numbers_are_the_same_however_they_are_written(photographs, tmp_path):
    from tasks.segmentation import archive_job as archive

    ids = set()
    for weight, iterations in ((4, 10), (4.0, 10), ("4", "10")):
        archive._identify.cache_clear()
        crf = {"bilateral_weight": weight, "iterations": iterations}
        ids.add(identify(job_of(photographs, tmp_path / "out", crf=crf)).run_id)
    assert len(ids) == 1


def test_masks_as_files_of_their_own_are_made_up_for_later(photographs, tmp_path):
    first = run(job_of(photographs, tmp_path / "out", crf=None))
    assert not (tmp_path / "out" / "png").exists()
    again = run(job_of(photographs, tmp_path / "out", crf=None, png=True))
    assert again.done_now == 0
    folder = tmp_path / "out" / "png" / f"run={first.run_id}"
    for image_id, row in rows_of(first).items():
        assert (folder / image_id).with_suffix(".png").read_bytes() == row["mask"]


def test_masks_as_files_follow_the_archive(photographs, tmp_path):
    """Photographs of one stem, replaced ones and ones that broke: a file each, and none that is stale."""
    job = job_of(photographs, tmp_path / "out", crf=None, png=True, refresh_changed=True)

    def files():
        report = run(job)
        folder = tmp_path / "out" / "png" / f"run={report.run_id}"
        return report, {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}

    report, found = files()
    assert found.keys() == {*(f"photo-{n}.png" for n in range(4)), "more/photo-4.png", "more/photo-5.png"}
    photograph(9, (40, 30)).save(photographs / "photo-0.png")  # Another picture of the same stem
    photograph(8, (64, 48)).save(photographs / "photo-1.jpg")
    (photographs / "photo-2.jpg").write_bytes(b"broken")
    report, found = files()
    rows = rows_of(report)
    by_name = {line["name"]: line["image_id"] for line in map(json.loads, names_of(tmp_path / "out", report))}
    assert {name: rows[by_name[name[:-4]]]["mask"] for name in found} == found
    assert found.keys() >= {"photo-0.jpg.png", "photo-0.png.png", "photo-1.png"} and "photo-2.png" not in found
    (tmp_path / "out" / "png" / f"run={report.run_id}" / "photo-3.png").unlink()
    assert files()[1] == found


def names_of(output, report):
    return (output / "png" / f"run={report.run_id}" / "names.jsonl").read_text().splitlines()


def test_files_that_an_earlier_version_named_stay(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out", crf=None, png=True)
    old = tmp_path / "out" / "png" / f"run={identify(job).run_id}" / "photo-0.jpg.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier version")
    said = Mock()
    with progress.told_to(said):
        run(job)
        run(job)
    assert old.read_bytes() == b"of an earlier version" and (old.parent / "photo-0.png").exists()
    assert sum("of an earlier version" in call.args[0] for call in said.say.call_args_list) == 1


def test_a_file_that_lacks_a_row_is_done_again(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out", crf=None)
    report = run(job)
    folder = tmp_path / "out" / "masks" / f"run={report.run_id}"
    place = sorted(folder.iterdir())[0]
    pq.write_table(pq.read_table(place, partitioning=None).slice(1), place)
    with pytest.raises(JobError, match="1 image has no row"):
        check_run(Output.at(job.output), identify(job))
    assert run(job).done_now > 0 and len(rows_of(report)) == 6


def test_masks_before_and_at_working_size(photographs, tmp_path):
    photograph(3, (130, 65)).save(photographs / "wide.png")
    report = run(job_of(photographs, tmp_path / "out", mask_size="working", keep_mask_before_crf=True))
    row = rows_of(report)["wide.png"]
    assert (row["width"], row["height"], row["mask_width"], row["mask_height"]) == (130, 65, 65, 32)
    after, before = masks.decode_mask(row["mask"]), masks.decode_mask(row["mask_before_crf"])
    assert after.shape == before.shape == (32, 65)
    assert row["changed_by_crf"] == pytest.approx((after != before).mean())


def test_a_replaced_photograph_is_done_again_on_request_only(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out")
    first = rows_of(run(job))
    photograph(99, (64, 48)).save(photographs / "photo-0.jpg", quality=95)
    told = Mock()
    with progress.told_to(told):
        plan = list_archive(job)
    assert (plan.changed, plan.remaining_units) == (1, 0)
    assert "1 photographs were replaced" in told.say.call_args.args[0]
    report = run(job_of(photographs, tmp_path / "out", refresh_changed=True))
    assert (report.images, report.done_now) == (6, 1)
    second = rows_of(report)  # Asserts that no image stands twice
    assert set(first) == set(second)
    assert [i for i in first if first[i]["mask"] != second[i]["mask"]] == ["photo-0.jpg"]
    assert list_archive(job).changed == 0


def test_rows_that_a_rival_listing_owns_are_dropped_at_the_finish(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out", crf=None)
    output = locate(job.output)
    folder = Output(output).manifest_folder(identify(job).source_id)
    stale = Manifest(folder)
    first = run(job)
    # A second listing began before the first had written, and saw one photograph more
    photograph(50, (64, 48)).save(photographs / "0.jpg")
    from tasks.archive.manifest import extend
    from tasks.archive.sources import Source, list_source

    extend(stale, list_source(Source(locate(job.source))))
    second = run(job)
    assert second.run_id == first.run_id and second.images == 7
    assert len(rows_of(second)) == 7


def test_a_unit_that_is_committed_while_the_run_is_proved_gives_no_second_row(photographs, tmp_path, monkeypatch):
    job = job_of(photographs, tmp_path / "out", crf=None)
    list_archive(job)  # And this session goes on slowly, while another lists all photographs again
    for number, file in enumerate(sorted(photographs.rglob("*.jpg"))):
        photograph(60 + number, (64, 48)).save(file)
    again = job_of(photographs, tmp_path / "out", crf=None, refresh_changed=True)
    plan = list_archive(again)
    session = segment_remaining(again, plan)
    output = Output.at(job.output)
    folder = output.masks_folder(plan.run_id)
    (early, late) = Manifest(output.manifest_folder(identify(job).source_id)).segments
    held = {file.path: storage.read_bytes(folder / file.path) for file in storage.list_files(folder)}
    make_durable = storage.make_durable

    def meanwhile(*places):
        for name, data in held.items():
            storage.write_once(folder / name.replace(late.name, early.name), data)
        make_durable(*places)

    monkeypatch.setattr(storage, "make_durable", meanwhile)  # Between the proof and the end
    report = publish_report(again, plan, session)
    assert len(held) == 3 and len(list(storage.list_files(folder))) == 6
    assert report.images == 6 and len(rows_of(report)) == 6


@pytest.mark.parametrize("sealed", [False, True])
def test_masks_whose_listing_is_gone_are_named_before_anything_is_done(photographs, tmp_path, sealed):
    job = job_of(photographs, tmp_path / "out", crf=None)
    report = run(job)
    if sealed:
        compact(CompactJob(output=job.output, expire=True, grace_minutes=0))
    output = Output.at(job.output)
    (listing,) = Manifest(output.manifest_folder(identify(job).source_id)).segments
    place = output.manifest_folder(identify(job).source_id) / f"{listing.name}.parquet"
    kept = storage.read_bytes(place)
    storage.remove(place)
    photograph(50, (64, 48)).save(photographs / "0.jpg")  # So that what is listed anew is another list
    with pytest.raises(JobError, match="is gone: bring it back from a copy, or remove these masks") as told:
        run(job)
    folder = output.sealed_folder(report.run_id) if sealed else output.masks_folder(report.run_id)
    assert place.uri in str(told.value) and f"{folder.uri}/" in str(told.value)
    # Either remedy helps
    for remedy in ("copy", "anew"):
        again = job_of(photographs, tmp_path / remedy, crf=None)
        shutil.copytree(tmp_path / "out", tmp_path / remedy)
        there = Output.at(again.output)
        if remedy == "copy":
            storage.write_whole(there.manifest_folder(identify(again).source_id) / place.name, kept)
        else:
            storage.remove_folder(there.sealed_folder(report.run_id))
            storage.remove_folder(there.masks_folder(report.run_id))
        assert run(again).images == 7
        assert len(open_results(again.output)) == 7


def test_a_parquet_file_that_repeats_identities_lists_no_image_again(tmp_path):
    image = io.BytesIO()
    photograph(1, (32, 24)).save(image, "PNG")
    (tmp_path / "in").mkdir()
    job = job_of(tmp_path / "in", tmp_path / "out")
    for name, images in (("b", 2), ("a", 4), ("c", 6)):
        pq.write_table(pa.table({"id": [1, 2], "image": [image.getvalue()] * 2}), tmp_path / "in" / f"{name}.parquet")
        plan = list_archive(job)
        assert (plan.images, plan.added) == (images, 2)
    assert list_archive(job).added == 0


def test_what_vanished_after_the_listing_is_an_error_row(photographs, tmp_path):
    job = job_of(photographs, tmp_path / "out", crf=None)
    plan = list_archive(job)
    (photographs / "photo-1.jpg").unlink()
    report = publish_report(job, plan, segment_remaining(job, plan))
    assert (report.masks, report.errors) == (5, {"missing": 1})


def test_dear_images_are_committed_in_smaller_units(photographs, tmp_path):
    options = {"inference": {"long_side_px": 4000, "precision": "fp32"}, "crf": None}
    job = job_of(photographs, tmp_path / "out", **options)
    assert identify(job).unit_images == 1
    report = run(job)
    assert len(list((tmp_path / "out" / "masks" / f"run={report.run_id}").iterdir())) == 6
    assert len(rows_of(report)) == 6
    (part, *_) = Output.at(job.output).manifest(identify(job).source_id).parts()
    assert [u[1:] for u in units_of(part, 1)] == [(0, 1), (1, 2)] and [u[1:] for u in units_of(part, 3)] == [(0, 2)]


def test_from_bucket_to_bucket_with_parquet_and_odd_names(bucket, tmp_path):
    buffer = io.BytesIO()
    photograph(1, (40, 60)).save(buffer, format="PNG")
    ids = ["plain", "ünï/cödé 🌄", "../../etc/passwd", "plain"]
    table = pa.table({"id": ids, "image": [buffer.getvalue(), buffer.getvalue(), b"no image", buffer.getvalue()]})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    bucket.put("photos.parquet", parquet.getvalue())
    job = job_of(f"s3://{bucket.name}/photos.parquet", f"s3://{bucket.name}/out", png=True, crf=None)
    report = run(job)
    assert (report.images, report.masks, report.errors) == (4, 3, {"not_an_image": 1})
    assert set(rows_of(report)) == {*ids, "plain!#3"}
    pngs = sorted(str(p.relative_to(bucket.folder)) for p in (bucket.folder / "out" / "png").rglob("*.png"))
    assert len(pngs) == 3 and all(p.startswith(f"out/png/run={report.run_id}/") for p in pngs)
    assert json.loads((bucket.folder / "out" / "runs" / f"{report.run_id}.json").read_text())["masks"] == 3
    assert run(job).done_now == 0


def test_a_job_that_cannot_run_says_why(photographs, tmp_path):
    (tmp_path / "nothing").mkdir()
    for options, words in [
        ({"source": tmp_path / "nowhere"}, "does not exist"),
        ({"source": tmp_path / "nothing"}, "holds no images"),
        ({"output": "/proc/nobody"}, "Cannot write the output"),
        ({"model": "deeplab_v1_largefow"}, "did you mean"),
        ({"untrained": False}, "no weights for deeplab_v1_largefov"),
        ({"untrained": False, "model": str(tmp_path / "nothing")}, "model"),
    ]:
        job = job_of(**({"source": photographs, "output": tmp_path / "out"} | options))
        with pytest.raises(JobError, match=words) as caught:
            list_archive(job)
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "nothing").iterdir())


def test_a_misspelt_or_senseless_job_is_refused_at_the_door():
    for wrong, place in [
        ({"crf": {"iterations": 0}}, ("crf", "iterations")),
        ({"inference": {"long_side_px": 2}}, ("inference", "long_side_px")),
        ({"limit": 0}, ("limit",)),
        ({"sauce": "x"}, ("sauce",)),
    ]:
        with pytest.raises(ValidationError) as caught:
            ArchiveJob.model_validate({"source": "a", "output": "b", **wrong})
        assert caught.value.errors()[0]["loc"] == place


def test_raw_files_that_had_no_reader_are_done_once_it_is_there(photographs, tmp_path):
    pytest.importorskip("rawpy", reason="the extra [raw] is not installed")
    for name in ("a.dng", "b.dng", "c.dng"):
        (photographs / name).write_bytes(dng(picture()))
    job = job_of(photographs, tmp_path / "out", crf=None)
    report = run(job)
    before = rows_of(report)
    assert report.masks == 9
    # As versions before RAW files, and installations without their reader, have left them
    reasons = {
        "a.dng": "a camera's RAW file, which is not read: develop it to JPEG or TIFF, or use the JPEG beside it",
        "b.dng": "A RAW file of a camera needs rawpy, which is not installed: pip install 'segment-archive[raw]'",
        "c.dng": "LibRaw does not know this RAW file: develop it to JPEG or TIFF, or use the JPEG beside it",
    }
    folder = Output.at(job.output).masks_folder(report.run_id)
    for file in storage.list_files(folder):
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(folder / file.path))).to_pylist()
        for row in rows:
            if row["image_id"] in reasons:
                facts = ("mask", "classes", "mask_width", "mask_height", "confidence", "entropy", "changed_by_crf")
                row |= dict.fromkeys(facts) | {"error_kind": "unsupported", "error": reasons[row["image_id"]]}
        write_rows(folder / file.path, rows)
    runs.end(locate(job.output), report.run_id, runs.FINISHED, None, masks=6, errors={"unsupported": 3})
    again = run(job)
    assert (again.images, again.masks, again.errors) == (9, 8, {"unsupported": 1})
    after = rows_of(again)
    assert after["c.dng"]["error"] == reasons["c.dng"]
    assert {i: row for i, row in after.items() if i != "c.dng"} == {i: r for i, r in before.items() if i != "c.dng"}
    assert run(job).done_now == 0
