"""Every command of the documentation is one; those of the README run."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import app, check
from tasks import storage, storage_client
from tests.conftest import Bucket
from tests.console import invoke

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "infra/README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

NOT_RUN = {
    "pip install --no-compile dist/segment_archive-*.whl": "benchmarks.install does, in an environment of its own",
}
"""Commands of the README that the test does not run, and why."""


def commands(page: str) -> list[str]:
    """Each command of the page's bash blocks, without its comment."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_documentation_can_be_parsed(page):
    for line in commands(page):
        if line.startswith("segment-archive") and "..." not in line and "<" not in line:
            check(shlex.split(line)[1:])


def test_code_of_the_documentation_is_python():
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S):
            compile(block, page, "exec")


def test_every_page_that_the_readme_names_is_there():
    for name in re.findall(
        r"`?((?:docs|infra|examples)/[\w./-]+)", (ROOT / "README.md").read_text().partition("flows/  ")[0]
    ):
        assert (ROOT / name.rstrip("/.")).exists(), name


def test_the_tree_is_true_and_fits_on_a_page_behind_two_screens():
    before, tree = (ROOT / "README.md").read_text().split("## The tree")
    assert len(before.splitlines()) <= 100
    [block] = re.findall(r"^```\n(.*?)^```", tree, flags=re.M | re.S)
    assert len(block.splitlines()) <= 60
    folder = ROOT
    for line in block.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        if not line.startswith(" "):
            folder = ROOT / names[0]
            assert folder.is_dir(), names
        else:
            assert all(list(folder.glob(name.rstrip("/"))) for name in names), line


def test_what_is_not_run_is_in_the_readme():
    assert set(NOT_RUN) <= set(commands("README.md"))


@pytest.mark.slow
def test_the_commands_of_the_readme_run(s3_server, tmp_path, monkeypatch):
    home = tmp_path / "home"
    photos = home / "photos"
    photos.mkdir(parents=True)
    bucket = Bucket("bucket", s3_server / "bucket")
    storage_client.filesystem(storage.locate("s3://bucket")).mkdir("bucket")
    shutil.copy(ROOT / "examples" / "photographs" / "cat.jpg", photos / "cat.jpg")
    for number in range(3):
        shade = np.full((48, 64, 3), 60 * number, np.uint8)
        Image.fromarray(shade).save(photos / f"{number}.jpg")
        bucket.put(f"photos/{number}.jpg", (photos / f"{number}.jpg").read_bytes())
    shutil.copy(photos / "cat.jpg", tmp_path / "photo.jpg")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.chdir(tmp_path)
    for line in commands("README.md"):
        if line in NOT_RUN:
            continue
        words = [word.replace("~", str(home), 1) if word.startswith("~") else word for word in shlex.split(line)]
        assert words[0] == "segment-archive", f"{line} is no command of ours: run it here, or say why not in NOT_RUN"
        done = invoke(app, *words[1:])
        assert done.exit_code == 0, (line, done.output)
    assert (home / "photos-masks" / "runs").is_dir() and (tmp_path / "cat-overlay.png").exists()
    assert (tmp_path / "coco" / "annotations.json").exists() and (s3_server / "bucket" / "masks").is_dir()
    [block] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "mask.png").exists() and (tmp_path / "overlay.jpg").exists()
