from flows.cli import app
from tests.console import invoke
from tests.datasets import make_dataset, write_list


def run(*arguments: str):
    return invoke(app, "prepare", *arguments)


def test_prepare_says_what_came_of_it(tmp_path):
    mine, out = make_dataset(tmp_path / "mine"), str(tmp_path / "out")
    shown = run(out, "--data", str(mine), "--split", "val=val", "--split", "few=train")
    assert shown.exit_code == 0, shown.output
    assert "mine: val 2, few 6 images" in shown.stdout and "gallery.png" in shown.stdout
    assert "Nothing to do" in run(out, "--data", str(mine), "--split", "val=val", "--split", "few=train").stdout
    (mine / "JPEGImages/img-0.jpg").unlink()
    shown = run(out, "--data", str(mine))
    assert shown.exit_code == 1 and "segment-archive: mine cannot be prepared as it is" in shown.stderr
    assert "Traceback" not in shown.output


def test_what_is_refused_leaves_no_folder_and_one_image_is_no_images(tmp_path):
    for wrong in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        shown = run(str(tmp_path / "a" / "out"), "--data", str(wrong))
        assert shown.exit_code == 1 and not (tmp_path / "a").exists(), shown.output
    (tmp_path / "kept").mkdir()
    assert (
        run(str(tmp_path / "kept"), "--data", str(tmp_path / "empty")).exit_code == 1 and (tmp_path / "kept").is_dir()
    )
    mine = make_dataset(tmp_path / "mine", 1, num_val=0)
    (mine / "ImageSets/Segmentation/val.txt").unlink()
    told = run(str(tmp_path / "out"), "--data", str(mine)).stdout
    assert "train 1 image;" in told and "in 1 file," in told
    assert "1 pair read" in run("--check", str(mine)).stdout


def test_check_shows_a_table_and_mends(tmp_path):
    mine = make_dataset(tmp_path / "mine")
    assert run("--check", str(mine)).exit_code == 0
    write_list(mine, "train", [f"img-{k}" for k in range(7)])
    report, gallery = tmp_path / "r.csv", tmp_path / "g.png"
    shown = run("--check", str(mine), "--report", str(report), "--gallery", str(gallery))
    assert shown.exit_code == 1
    assert "in train and in val" in shown.stdout and "img-6 is in val too" in shown.stdout
    assert "take it out of the training list" in shown.stdout and "cat" in shown.stdout
    assert "in train and in val" in report.read_text() and gallery.stat().st_size > 1000
    shown = run("--check", str(mine), "--fix")
    assert shown.exit_code == 0 and "1 file mended" in shown.stdout and "Nothing is wrong" in shown.stdout


def test_what_makes_no_sense_is_one_sentence(tmp_path):
    for arguments, message in (
        ((), "Name where the dataset goes"),
        (("--check", str(tmp_path / "none")), "does not exist"),
        (("--check", "x", "--data", "y"), "give --check PATH alone"),
        (("out", "--fix"), "belong to --check"),
        (("out", "--split", "train"), "is not NAME=FILE"),
        (("out", "--val-share", "1"), "--val-share: input should be less than 1"),
        (("out", "--prefer", "coco"), "prefer"),
    ):
        shown = run(*arguments)
        assert shown.exit_code in (1, 2) and message in shown.stderr, shown.output
        assert shown.stderr.startswith("segment-archive: ") and shown.stderr.count("\n") == 1


def test_findings_as_json(tmp_path):
    import json

    mine = make_dataset(tmp_path / "mine")
    fine = run("--check", str(mine), "--json")
    assert fine.exit_code == 0 and json.loads(fine.stdout)["errors"] == 0
    next((mine / "SegmentationClass").iterdir()).write_bytes(b"no image")
    broken = run("--check", str(mine), "--json")
    assert broken.exit_code == 1 and json.loads(broken.stdout)["errors"] >= 1 and "Traceback" not in broken.stderr
