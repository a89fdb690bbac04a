"""The pages of the program by axe-core: no serious finding, wide and narrow, light and dark; and by keyboard alone."""

from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image

from flows import jobs
from flows.execution import directly
from tasks.evaluation.evaluate import ReevaluateJob, evaluations_of, open_dataset
from tasks.models.registry import list_models
from tasks.results.report import ReportJob, build_report
from tests.evaluation_data import INFERENCE, judged_in_process, save_model, small_dataset

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

FOUND = """async () => (await axe.run(document)).violations
    .filter(found => ["serious", "critical"].includes(found.impact))
    .map(found => `${found.id}: ${found.help}: ${found.nodes.slice(0, 3).map(node => node.html).join(" ")}`)"""

LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def gallery(small_output, tmp_path_factory) -> str:
    """With true masks of half of the images."""
    truth = tmp_path_factory.mktemp("truth")
    for number in range(16):
        Image.fromarray(np.full((48, 64), number % 3, np.uint8)).save(truth / f"{number:03d}.png")
    to = str(tmp_path_factory.mktemp("gallery"))
    return Path(build_report(ReportJob(output=small_output, to=to, truth=str(truth))).index).as_uri()


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("night")
    small_dataset(folder / "data", num_images=8)
    for name, seed in (("good", 0), ("other", 1)):
        save_model(folder / "models" / name, seed)
    job = ReevaluateJob(
        models=str(folder / "models"),
        dataset=str(folder / "data"),
        output=str(folder / "out"),
        inference=INFERENCE,
        crf=None,
    )
    manifest, _ = open_dataset(job)
    for model in list_models(job.models):
        for asked in evaluations_of(job, model, manifest):
            judged_in_process(job, asked)
    jobs.reevaluate(job, directly)
    return next((folder / "out" / "reports").rglob("*.html")).as_uri()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_gallery_has_no_serious_finding(browser, gallery, width, scheme):
    places = {"#/": "#grid li", "#/image/001.jpg": "#truth", "#/run": ".about"}
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        context.set_default_timeout(120_000)
        for place, there in places.items():
            page = context.new_page()
            page.goto(gallery + place)
            page.wait_for_selector("html[data-ready]")
            page.wait_for_selector(there)
            if place == "#/" and width < 800:
                page.click("#filters-toggle")
            page.evaluate(AXE)
            assert page.evaluate(FOUND) == [], (place, width, scheme)
            page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_page_of_a_night_has_no_serious_finding(browser, night, width, scheme):
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.goto(night)
        page.evaluate(AXE)
        assert page.evaluate(FOUND) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("p.quiet code").all_inner_texts() == [f"segment-archive baseline accept {out_of(night)}"]
        assert min(page.evaluate("[...document.images].map(i => i.clientWidth / Math.min(i.naturalWidth, 640))")) >= 1
        # The first model makes no mistake, and has no table of them
        assert page.locator("h3").all_inner_texts() == ["Confusions by name"]


def out_of(page: str) -> str:
    """Folder of the evaluations that a page is of."""
    return page.removeprefix("file://").partition("/reports/")[0]


def test_the_gallery_by_keyboard_alone(browser, gallery):
    """Skip link, a filter, an image and its truth, a selection saved as a list."""
    with browser.new_context(viewport={"width": 1280, "height": 844}, accept_downloads=True) as context:
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.goto(gallery)
        page.wait_for_selector("html[data-ready]")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("/")
        page.keyboard.type("00")
        page.keyboard.press("Escape")
        page.wait_for_timeout(400)
        _tab_to(page, "document.activeElement.matches('.tile')")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector("#truth canvas.fill")
        for key in ("6", "7", "+", "s", "ArrowRight"):
            page.keyboard.press(key)
        # The page forbids eval, which waiting for a function would need
        page.wait_for_selector("#image-title:text-is('002.jpg')")
        assert page.get_attribute("html", "data-mode") == "wrong"
        page.keyboard.press("Escape")
        _tab_to(page, "document.activeElement.id === 'save-picked'")
        with page.expect_download() as saved:
            page.keyboard.press("Enter")
        assert Path(saved.value.path()).read_text() == "001.jpg\n"


def _tab_to(page, reached):
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate(reached):
            return
    raise AssertionError(f"never by Tab: {reached}")
