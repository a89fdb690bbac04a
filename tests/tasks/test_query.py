import re
from pathlib import Path

import duckdb
import pytest

from tasks.errors import JobError
from tasks.results.query import VIEWS, FindJob, ask, connect, find
from tasks.results.reading import open_results
from tests.outputs import HOSTILE_CLASSES, error_row, mask_row, small_rows, write_run


def rows(answer):
    return list(answer.rows())


def test_the_views_read_one_run(small_output):
    assert rows(ask(small_output, "SELECT count(*), count(DISTINCT run_id) FROM images")) == [(32, 1)]
    assert rows(ask(small_output, "SELECT DISTINCT run_id FROM images", "aaaa")) == [("aaaa11110000",)]
    assert rows(ask(small_output, "SELECT error_kind, image_id FROM errors ORDER BY 1")) == [
        ("empty", "bad/empty.jpg"),
        ("truncated", "z.txt"),
    ]
    assert rows(ask(small_output, "SELECT count(*), count(mask), count(mask_before_crf) FROM masks")) == [(30, 30, 30)]
    told = rows(ask(small_output, "SELECT run_id, chosen, status, images, errors FROM runs"))
    assert told == [
        ("bbbb22220000", True, "finished", 32, 2),
        ("aaaa11110000", False, "finished", 32, 2),
        ("cccc33330000", False, "running", 8, 0),
    ]
    assert (1, "read", "busy_share", 0.1) in rows(ask(small_output, "SELECT * FROM metrics"))


def test_objects_are_the_classes_of_each_mask(small_output):
    opened = open_results(small_output)
    shares = dict(rows(ask(small_output, "SELECT image_id, sum(share) FROM objects GROUP BY 1")))
    assert len(shares) == 30 and all(share == pytest.approx(1) for share in shares.values())
    found = rows(
        ask(small_output, "SELECT class, pixels, share, box.x1 FROM objects WHERE image_id = '007.jpg' ORDER BY 2")
    )
    labels = opened.mask("007.jpg")
    by_name = {name: (pixels, share, x1) for name, pixels, share, x1 in found}
    assert by_name["tvmonitor"] == ((labels == 20).sum(), pytest.approx((labels == 20).mean()), 4)


def test_masks_are_not_read_for_a_question_about_facts(small_output):
    connection = connect(open_results(small_output))
    told = connection.execute("EXPLAIN ANALYZE SELECT class, count(*) FROM objects GROUP BY 1").fetchall()[0][1]
    assert "mask_before_crf" not in told and not re.search(r"\bmask\b", told)


def test_what_duckdb_cannot_answer_is_one_sentence(small_output):
    with pytest.raises(JobError, match='Referenced column "confidense" not found') as caught:
        ask(small_output, "SELECT confidense FROM images")
    assert "\n" not in str(caught.value) and "images, objects, errors" in str(caught.value)
    with pytest.raises(JobError, match=r"syntax error"):
        ask(small_output, "SELEKT 1")
    with pytest.raises(JobError, match=r"Conversion Error"):
        rows(ask(small_output, "SELECT image_id::INT FROM images"))


def test_find_answers_what_sql_would(small_output):
    sql = "SELECT image_id FROM objects WHERE class = 'dog' AND share > 0.05 ORDER BY confidence DESC, image_id"
    job = FindJob(classes=("dog",), min_share=0.05, sort="confidence")
    assert [row[0] for row in rows(find(small_output, job))] == [row[0] for row in rows(ask(small_output, sql))]
    both = rows(find(small_output, FindJob(classes=("dog", "tvmonitor"), limit=1)))
    assert [row[0] for row in both] == ["011.jpg"]
    least = rows(find(small_output, FindJob(sort="confidence", ascending=True, limit=3)))
    assert [row[0] for row in least] == ["029.jpg", "028.jpg", "027.jpg"]
    sure = rows(find(small_output, FindJob(min_confidence=0.9)))
    assert [row[0] for row in sure] == [f"{number:03d}.jpg" for number in range(len(sure))] and 4 < len(sure) < 8
    assert rows(find(small_output, FindJob(max_confidence=0.01))) == []


def test_what_to_annotate_next_is_what_is_doubtful_in_every_respect(tmp_path):
    import numpy as np

    labels = np.ones((4, 4), np.uint8)
    measures = {"sure": (0.99, 0.01, 0.0), "doubtful": (0.4, 1.2, 0.3), "between": (0.7, 0.5, 0.1)}
    made = []
    for name, (confidence, entropy, changed) in measures.items():
        row = mask_row(name, name, labels)
        made.append(row | {"confidence": confidence, "entropy": entropy, "changed_by_crf": changed})
    write_run(str(tmp_path), "r", [*made, error_row("broken", "broken")])
    found = find(str(tmp_path), FindJob(sort="annotate"))
    assert [row[0] for row in rows(found)] == ["doubtful", "between", "sure"]
    with_class = find(str(tmp_path), FindJob(classes=("aeroplane",), sort="annotate"))
    assert [row[0] for row in rows(with_class)] == ["doubtful", "between", "sure"]


def test_a_class_that_is_nowhere_is_named_with_those_that_are(small_output, tmp_path):
    with pytest.raises(JobError, match=r"holds 'dgo'; did you mean dog\? Images by class: background 30, .*dog"):
        find(small_output, FindJob(classes=("dgo",)))
    with pytest.raises(JobError, match=r"name one with --class"):
        find(small_output, FindJob(sort="share"))
    write_run(str(tmp_path / "out"), "r", small_rows(tmp_path / "p", num_images=6, names=HOSTILE_CLASSES))
    found = find(str(tmp_path / "out"), FindJob(classes=(HOSTILE_CLASSES[1],)))
    assert len(rows(found)) == 2


def test_a_bucket_answers_without_its_masks_being_read(bucket, tmp_path):
    write_run(f"s3://{bucket.name}/out", "r", small_rows(tmp_path / "p", num_images=12), per_file=4)
    output = f"s3://{bucket.name}/out"
    assert rows(ask(output, "SELECT count(*) FROM objects WHERE class = 'background'")) == [(12,)]
    assert [row[0] for row in rows(find(output, FindJob(classes=("tvmonitor",), sort="share", limit=2)))]
    assert rows(ask(output, "SELECT count(mask) FROM masks")) == [(12,)]


def test_the_recipes_of_the_documentation_run(small_output, monkeypatch):
    """Every DuckDB and Polars block of docs/results.md, on a real output."""
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    sql = re.findall(r"```sql\n(-- DuckDB.*?)```", text, flags=re.DOTALL)
    python = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    python = [block for block in python if "~/lake" not in block]  # tests/tasks/test_publish.py reads such a table
    # DuckDB takes brackets in a path for a pattern; the recipes are for paths without
    plain = Path(small_output).parent / "plain"
    if not plain.exists():
        plain.symlink_to(small_output, target_is_directory=True)
    monkeypatch.chdir(plain.parent)
    assert len(sql) >= 2 and len(python) >= 3
    for block in sql:
        found = duckdb.sql(block.replace("OUTPUT", "plain").replace("RUN", "bbbb22220000")).fetchall()
        assert found
    for block in python:
        exec(compile(block.replace("OUTPUT", "plain").replace("RUN", "bbbb22220000"), "recipe", "exec"), {})


def test_every_view_is_described_and_there(small_output):
    for name in VIEWS:
        assert ask(small_output, f"SELECT * FROM {name} LIMIT 1").columns
