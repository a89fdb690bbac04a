"""The gallery in a real browser: what a person does, with hostile names, ten thousand images, and no network."""

import contextlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from tasks.results.report import ReportJob, build_diff_report, build_report
from tests.outputs import HOSTILE_CLASSES, HOSTILE_NAMES, error_row, mask_row, real_rows, small_rows, write_run


@contextlib.contextmanager
def opened(browser, address, folder, **options):
    """A page that must stay without a console message, an error or a request to anything but the folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    faults = []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    inside = ("data:", "blob:", str(folder))
    page.on("request", lambda r: None if r.url.startswith(inside) else faults.append(f"left the folder: {r.url}"))
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert not faults, faults


@pytest.fixture(scope="module")
def gallery(small_output, tmp_path_factory) -> Path:
    made = build_report(ReportJob(output=small_output, to=str(tmp_path_factory.mktemp("gallery"))))
    return Path(made.index)


def until(page, expression, argument=None):
    """Wait for something to be true. Asked from outside, since the page's own policy forbids evaluated text."""
    for _ in range(600):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {expression}")


TYPED = """wanted => {
  for (const [name, value] of Object.entries(wanted)) {
    const input = document.querySelector(name === "search" ? "#search" : `input[data-key='${name}']`);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  }
}"""
"""Types or drags several things at once."""


def names(page):
    return page.eval_on_selector_all(".tile .caption > span:first-child", "all => all.map(e => e.textContent)")


def count(page):
    return page.inner_text("#count b")


def painted(page, selector):
    """Share of the pixels of a canvas that are not transparent."""
    return page.eval_on_selector(
        selector,
        """canvas => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const d = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); }""",
    )


def opacity(page):
    return page.eval_on_selector(".tile canvas.fill", "e => Number(getComputedStyle(e).opacity)")


def test_load_slider_switch_and_outlines(browser, gallery):
    with opened(browser, gallery.as_uri(), gallery.parent.as_uri()) as page:
        assert count(page) == "32" and len(names(page)) == 32
        until(page, "document.querySelector('.tile canvas.fill').width > 0")
        assert 0 < painted(page, ".tile canvas.fill") < 1 and 0 < painted(page, ".tile canvas.lines") < 1
        assert page.get_attribute(".tile img", "alt").startswith("000.jpg: background ")
        page.fill("#opacity", "20")
        assert opacity(page) == pytest.approx(0.2) and page.inner_text("label:has(#opacity) output") == "20%"
        page.keyboard.press("Escape")
        page.uncheck("#lines")
        assert page.eval_on_selector(".tile canvas.lines", "e => getComputedStyle(e).visibility") == "hidden"
        page.click("[data-mode-of='mask']")
        assert opacity(page) == 1
        assert page.eval_on_selector(".tile img", "e => getComputedStyle(e).visibility") == "hidden"
        with_crf = painted(page, ".tile canvas.fill")
        page.click("button:has-text('Before CRF')")
        assert painted(page, ".tile canvas.fill") < with_crf
        page.click("button:has-text('Photo')")
        assert page.eval_on_selector(".tile canvas.fill", "e => getComputedStyle(e).visibility") == "hidden"
        page.click("button:has-text('Changes')")
        assert 0 < painted(page, ".tile canvas.fill") < with_crf
        # Clear colours and their patterns from the start, VOC's on request
        assert page.locator(".classes .swatch.striped").count() > 3
        assert page.locator(".classes input[value='background']").count() == 0
        page.select_option("#colours", "voc")
        assert page.locator(".classes .swatch.striped").count() == 0


def test_filters_orders_and_search(browser, gallery, small_output):
    from tasks.results.query import FindJob, find

    with opened(browser, gallery.as_uri(), gallery.parent.as_uri()) as page:
        page.check(".classes input[value='dog']")
        wanted = [row[0] for row in find(small_output, FindJob(classes=("dog",), min_share=0.01)).rows()]
        assert names(page) == wanted and "class=dog" in page.url
        page.fill("input[data-key='share']", "10")
        wanted = [row[0] for row in find(small_output, FindJob(classes=("dog",), min_share=0.1)).rows()]
        until(page, f"document.querySelector('#count b').textContent === '{len(wanted)}'")
        page.click("text=Clear filters")
        until(page, "document.querySelector('#count b').textContent === '32'")
        page.select_option("#sort", "doubt")
        assert names(page)[:3] == ["029.jpg", "028.jpg", "027.jpg"]
        page.fill("input[data-key='low']", "0.9")
        until(page, "document.querySelector('#count b').textContent === '6'")
        page.click("text=Clear filters")
        page.check("input[name='kind'][value='errors']")
        assert sorted(names(page)) == ["empty.jpg", "z.txt"] and "no mask, empty" in page.content()
        page.check("input[name='kind'][value='all']")
        page.fill("#search", "01")
        until(page, "document.querySelector('#count b').textContent === '11'")
        page.fill("#search", "nothing like this")
        page.wait_for_selector("text=No image fits all of these filters")
        page.click(".empty >> text=Clear filters")
        assert count(page) == "32"
        # What is typed is asked a moment later: not after everything was cleared meanwhile, and nothing of it is lost
        page.check(".classes input[value='dog']")
        page.evaluate(TYPED, {"search": "01"})
        page.evaluate("[...document.querySelectorAll('button')].find(b => b.textContent === 'Clear filters').click()")
        page.wait_for_timeout(300)
        assert count(page) == "32" and page.input_value("#search") == ""
        page.evaluate(TYPED, {"share": "10", "low": "0.5"})
        until(page, "location.hash.includes('share=') && location.hash.includes('low=')")
        page.click("text=Clear filters")
        # A few pixels of a class are no picture of it; whoever wants those too moves the slider
        counted = ".classes label:has(input[value='tvmonitor']) .count"
        more = [row[0] for row in find(small_output, FindJob(classes=("tvmonitor",), min_share=0.01)).rows()]
        page.check(".classes input[value='tvmonitor']")
        assert names(page) == more and page.inner_text(counted).startswith(f"{len(more)}\n")
        page.fill("input[data-key='share']", "0")
        wanted = [row[0] for row in find(small_output, FindJob(classes=("tvmonitor",))).rows()]
        assert len(wanted) > len(more) > 0
        until(page, f"document.querySelector('#count b').textContent === '{len(wanted)}'")
        assert names(page) == wanted and page.inner_text(counted).startswith(f"{len(wanted)}\n")
        page.click("text=Clear filters")
    # A link carries its question
    with opened(browser, f"{gallery.as_uri()}#/?class=dog&sort=confidence", gallery.parent.as_uri()) as page:
        assert page.is_checked(".classes input[value='dog']") and page.input_value("#sort") == "confidence"


def test_the_page_of_an_image_by_mouse_and_keyboard(browser, gallery):
    with opened(browser, gallery.as_uri(), gallery.parent.as_uri()) as page:
        page.focus(".tile >> nth=0")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        top = "document.activeElement.getBoundingClientRect().top + scrollY"
        lower = page.evaluate(top)
        page.keyboard.press("ArrowUp")
        assert page.evaluate(top) < lower
        page.focus(".tile >> nth=0")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector("article.image")
        assert page.inner_text("#image-title") == "001.jpg"
        rows = page.locator("table.legend tbody tr")
        assert rows.count() == 3 and "bicycle" in rows.nth(1).inner_text()
        all_painted = painted(page, ".stage canvas.fill")
        rows.nth(1).locator("button").click()
        assert painted(page, ".stage canvas.fill") > all_painted and page.locator(".stage .box").count() == 1
        page.mouse.move(0, 0)
        page.keyboard.press("ArrowRight")
        until(page, "document.querySelector('#image-title').textContent === '002.jpg'")
        page.keyboard.press("5")
        assert page.get_attribute("[data-mode-of='changes']", "aria-pressed") == "true"
        page.hover(".stage .frame")
        assert page.inner_text(".under") in ("background", "bird", "tvmonitor")
        page.keyboard.press("Escape")
        page.wait_for_selector("#grid")
        assert page.evaluate("document.activeElement.querySelector('.caption span').textContent") == "002.jpg"
        page.goto(f"{gallery.as_uri()}#/image/bad%2Fempty.jpg")
        page.wait_for_selector("article.image >> text=No mask (empty): the file is empty")
        page.click("#to-run")
        page.wait_for_selector("text=Errors by reason")
        assert page.locator(".histogram").first.locator("li").count() == 21
        page.click(".histogram a:has-text('dog')")
        page.wait_for_selector("#grid")
        assert page.is_checked(".classes input[value='dog']")
        page.click("#theme")
        page.goto(f"{gallery.as_uri()}#/image/nobody.jpg")
        page.wait_for_selector("text=Not in this gallery")


def test_zoom_pan_and_names_under_the_pointer(browser, gallery):
    with opened(browser, f"{gallery.as_uri()}#/image/001.jpg", gallery.parent.as_uri()) as page:
        page.wait_for_selector("article.image")
        box = page.locator(".stage .frame").bounding_box()
        scaled = "() => document.querySelector('.stage canvas.fill').getBoundingClientRect().width"
        page.mouse.move(box["x"] + 2, box["y"] + 2)  # The corner holds a tvmonitor
        assert page.inner_text(".under") == "tvmonitor"
        page.click("#zoom-in")
        assert page.evaluate(scaled) == pytest.approx(1.5 * box["width"], rel=0.01)
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        assert page.inner_text(".under") != "tvmonitor"  # It is out of sight
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=4)
        page.mouse.up()
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        assert page.inner_text(".under") == "tvmonitor"  # It was dragged back
        page.mouse.wheel(0, -400)
        assert page.evaluate(scaled) > 2 * box["width"]
        page.keyboard.press("0")
        assert page.evaluate(scaled) == pytest.approx(box["width"], rel=0.01)


def test_a_selection_is_kept_and_saved_for_export(browser, gallery, small_output, tmp_path):
    from tasks.results.export import ExportJob, export_run

    with opened(browser, gallery.as_uri(), gallery.parent.as_uri()) as page:
        assert not page.is_visible("#picked")
        page.hover(".grid li >> nth=2")
        page.click(".grid li >> nth=2 >> .pick")
        page.click(".tile >> nth=4")
        page.wait_for_selector("article.image")
        wanted = {"002.jpg", page.inner_text("#image-title")}
        page.keyboard.press("s")
        page.keyboard.press("Escape")
        page.wait_for_selector("#picked >> text=2 images selected")
        page.reload()
        page.wait_for_selector("#picked >> text=2 images selected")
        with page.expect_download() as saved:
            page.click("#save-picked")
        saved.value.save_as(tmp_path / "selection.txt")
        assert set((tmp_path / "selection.txt").read_text().splitlines()) == wanted
        page.click("#clear-picked")
        assert not page.is_visible("#picked")
    job = ExportJob(
        output=small_output, to="png", destination=str(tmp_path / "png"), ids=str(tmp_path / "selection.txt")
    )
    assert export_run(job).masks == 2


def test_how_confident_each_class_is(browser, gallery):
    with opened(browser, f"{gallery.as_uri()}#/run", gallery.parent.as_uri()) as page:
        page.wait_for_selector(".confidences")
        told = page.get_attribute(".confidences li:has-text('dog') .bins", "aria-label")
        assert told.startswith("Confidence of dog, images from 0.9 to 1.0: ")
        assert page.locator(".confidences li:has-text('background')").count() == 0


def test_phone_width_has_no_sideways_scroll_and_labels_for_everything(browser, gallery):
    unnamed = """() => [...document.querySelectorAll('button, a, input, select')].filter(e =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length || e.querySelector('img[alt]'))
    ).map(e => e.outerHTML)"""
    options = {"color_scheme": "dark", "reduced_motion": "reduce"}
    with opened(browser, gallery.as_uri(), gallery.parent.as_uri(), **options) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        assert not page.is_visible("#filters")
        page.click("#filters-toggle")
        assert page.is_visible("#search")
        for place in ("#/", "#/image/001.jpg", "#/run"):
            page.goto(f"{gallery.as_uri()}{place}")
            page.wait_for_selector({"#/": "#grid", "#/run": ".about"}.get(place, "article.image"))
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
            assert page.evaluate(unnamed) == []
            assert page.locator("img:not([alt])").count() == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert all(int(part) < 60 for part in dark[4:-1].split(","))


def test_hostile_names_are_text(browser, tmp_path):
    rows = small_rows(tmp_path / "p", num_images=len(HOSTILE_NAMES), names=HOSTILE_CLASSES)
    hostile = [row | {"image_id": name} for row, name in zip(rows, HOSTILE_NAMES, strict=True)]
    reason = "<script>alert(9)</script> & \u2028 broken"
    hostile.append(error_row("<svg onload=alert(4)>", "javascript:alert(5)", reason=reason))
    write_run(str(tmp_path / "out"), "r", hostile, model="<i>model</i>", job={"source": "</script><b>x"})
    index = Path(build_report(ReportJob(output=str(tmp_path / "out"))).index)
    with opened(browser, index.as_uri(), index.parent.as_uri()) as page:
        until(page, "document.querySelector('.tile canvas.fill').width > 0")
        alts = page.eval_on_selector_all(".tile img", "all => all.map(e => e.alt)")
        assert all(any(alt.startswith(f"{name}: ") for alt in alts) for name in HOSTILE_NAMES)
        assert page.locator("main b:has-text('dog'), main script, main svg, main i, img[src=x]").count() == 0
        assert HOSTILE_CLASSES[1] in page.inner_text(".classes")
        for name in [*HOSTILE_NAMES, "<svg onload=alert(4)>"]:
            page.evaluate("name => { location.hash = `#/image/${encodeURIComponent(name)}`; }", name)
            until(page, "name => document.querySelector('#image-title')?.textContent === name", name)
        assert reason in page.text_content(".notice.warn")
        page.goto(f"{index.as_uri()}#/run")
        page.wait_for_selector("dd:has-text('<i>model</i>')")
        page.wait_for_timeout(200)


def test_a_web_server_serves_it_as_a_bucket_would(browser, gallery):

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(gallery.parent))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with opened(browser, address, address) as page:
            until(page, "document.querySelector('.tile canvas.fill').width > 0")
            assert count(page) == "32"
        server.shutdown()


def test_a_gallery_without_masks_before_the_crf_says_so(browser, tmp_path):
    rows = [row | {"mask_before_crf": None} for row in small_rows(tmp_path / "p", num_images=3)]
    write_run(str(tmp_path / "out"), "r", rows, status="running", finished=None)
    index = Path(build_report(ReportJob(output=str(tmp_path / "out"), run="r")).index)
    with opened(browser, index.as_uri(), index.parent.as_uri()) as page:
        assert page.is_disabled("[data-mode-of='before']")
        assert "keep-mask-before-crf" in page.get_attribute("[data-mode-of='before']", "title")
        assert "This run is not finished" in page.inner_text(".notice.warn")


def test_the_gallery_of_differences(browser, small_output):
    _, made = build_diff_report(small_output, "aaaa", "bbbb")
    index = Path(made.index)
    with opened(browser, index.as_uri(), index.parent.as_uri()) as page:
        until(page, "document.querySelector('.tile canvas.fill').width > 0")
        page.click("button:has-text('Changes')")
        assert painted(page, ".tile canvas.fill") > 0
        assert page.inner_text("[data-mode-of='before']") == "Run A"
        page.click("#to-run")
        page.wait_for_selector("text=Agreement (IoU between the two runs)")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_images(browser, tmp_path):
    from tests.conftest import photograph

    place = tmp_path / "one.jpg"
    photograph(1, (24, 18)).save(place)
    labels = [np.zeros((18, 24), np.uint8) for _ in range(20)]
    for number, mask in enumerate(labels):
        mask[3:9, 2 : 4 + number] = 1 + number
    made = [mask_row("", str(place), mask) for mask in labels]
    rows = [
        made[n % 20] | {"image_id": f"{n:05d}.jpg", "confidence": (n * 7919 % 10007) / 10007} for n in range(10_000)
    ]
    write_run(str(tmp_path / "out"), "r", rows, per_file=1000)
    index = Path(build_report(ReportJob(output=str(tmp_path / "out"), images=10_000)).index)
    with opened(browser, index.as_uri(), index.parent.as_uri()) as page:
        assert count(page) == "10,000" and len(names(page)) == 60
        assert "Page 1 of 167" in page.inner_text("#pager")
        page.click("text=Next →")
        assert names(page)[0] == "00060.jpg"
        page.select_option("#sort", "doubt")
        assert names(page)[0] == "00000.jpg" and names(page)[1] == rows_by_confidence(rows)[1]
        page.fill("#search", "99")
        until(page, "document.querySelector('#count b').textContent === '280'")
        page.goto(f"{index.as_uri()}#/image/09999.jpg")
        page.wait_for_selector("article.image")
        assert page.evaluate("document.querySelectorAll('*').length") < 3000


def rows_by_confidence(rows):
    return [row["image_id"] for row in sorted(rows, key=lambda row: row["confidence"])]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_photographs(browser, voc, tmp_path):
    write_run(str(tmp_path / "out"), "r", real_rows(voc), per_file=64)
    index = Path(build_report(ReportJob(output=str(tmp_path / "out"))).index)
    with opened(browser, index.as_uri(), index.parent.as_uri()) as page:
        assert count(page) == "400"
        until(page, "[...document.querySelectorAll('.tile canvas.fill')].every(c => c.width >= 200)")
        page.check(".classes input[value='dog']")
        until(page, "document.querySelector('.tile canvas.fill')?.width >= 200")
        assert painted(page, ".tile canvas.fill") > 0
