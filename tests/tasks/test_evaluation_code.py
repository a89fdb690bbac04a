"""Another program or engine is another evaluation; other words, charts and places are not."""

import shutil
from pathlib import Path

import pytest

from segcore.crf import dense_crf
from tasks.evaluation.code import DECIDING, code_digest, deciding_files, engine_source_digest
from tests.conftest import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    code = shutil.ignore_patterns("__pycache__", "*.so", "weights_bundled")
    for folder in ("segcore", "tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=code)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "path",
    ["segcore/crf/engine/engine.inl", "segcore/crf/engine/lattice.inl", "segcore/crf/engine/simd.inl",
     "segcore/crf/engine/team.hpp", "CMakeLists.txt", "segcore/images/decoding.py", "segcore/scoring/tta.py",
     "segcore/models/pspnet.py", "segcore/models/vgg.py",
     "segcore/metrics/evaluation.py", "tasks/evaluation/judging.py", "tasks/evaluation/metrics.py"],
)  # fmt: skip
def test_what_decides_a_metric_is_in_the_digest(clone: Path, path: str) -> None:
    built = engine_source_digest(clone) or ""
    before = code_digest(clone, built)
    with (clone / path).open("a") as file:
        file.write("\nadded = 1\n")
    assert code_digest(clone, built) != before


@pytest.mark.parametrize(
    "path",
    [
        "segcore/metrics/charts.py",
        "segcore/learning/losses.py",
        "tasks/nights/page.py",
        "tasks/evaluation/submission.py",
    ],
)
def test_what_shows_or_trains_is_not(clone: Path, path: str) -> None:
    before = code_digest(clone, "")
    with (clone / path).open("a") as file:
        file.write("\nadded = 1\n")
    assert code_digest(clone, "") == before


def test_words_and_layout_are_not(clone: Path) -> None:
    before = code_digest(clone, "")
    replaced(clone / "segcore/metrics/evaluation.py", '"""How good label maps are', '"""Whether label maps are')
    replaced(clone / "segcore/metrics/evaluation.py", "def iou(", "# A comment\n\n\ndef iou(")
    assert code_digest(clone, "") == before


def test_a_wheel_has_the_digest_of_its_clone(clone: Path) -> None:
    built = engine_source_digest(clone)
    assert built is not None
    before = code_digest(clone, built)
    shutil.rmtree(clone / "segcore/crf/engine")
    (clone / "CMakeLists.txt").unlink()
    assert engine_source_digest(clone) is None
    assert code_digest(clone, built) == before


def test_an_engine_that_is_not_built_yet_is_neither_the_old_nor_the_new_one(clone: Path) -> None:
    old = engine_source_digest(clone) or ""
    before = code_digest(clone, old)
    with (clone / "segcore/crf/engine/engine.inl").open("a") as file:
        file.write("// Another engine\n")
    new = engine_source_digest(clone) or ""
    assert len({before, code_digest(clone, old), code_digest(clone, new)}) == 3


def test_every_module_named_is_there_and_the_predictor_among_what_they_import() -> None:
    files = deciding_files(ROOT)
    assert {f"{name.replace('.', '/')}.py" for name in DECIDING} <= set(files)
    assert {"segcore/predictor.py", "segcore/crf/dense_crf.py", "segcore/models/deeplab_v2.py"} <= set(files)
    assert not {"segcore/metrics/charts.py", "segcore/learning/training.py"} & set(files)


@pytest.mark.skipif(not dense_crf.engine_digest(), reason="the CRF engine was built before it carried its digest")
def test_the_engine_at_work_is_built_from_these_sources() -> None:
    assert dense_crf.engine_digest() == engine_source_digest(ROOT)
