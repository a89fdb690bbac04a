"""A browser's second opinion: the pixels that Chromium draws of odd image files are ours."""

import base64

import numpy as np
import pytest

from segcore.images.decoding import decode
from tests.odd_images import cut_files, odd_files, sound_files, with_broken_exif

TOLERANCE = 2.5
"""Mean difference in levels of 255. Decoders round in their own ways: chroma that is scaled up, profiles."""

KNOWN = {
    "alpha.avif": "Chromium spreads the levels of AVIF's alpha from 16-235, libavif takes them as they are",
    "no-end.jpg": "Chromium leaves the last row of blocks of a JPEG without an end undrawn, though it is there",
    "alpha-zero.bmp": "Chromium draws nothing where the header promises alpha; nobody stores a picture to be unseen",
}
"""Where we may differ, and mean to: Chromium 150.0.7871.100 differs in the JPEG alone."""

NOT_SHOWN = (".heic", ".tif")
"""Endings of what Chromium does not show."""

_DRAW = """async (urls) => {
    const drawn = [];
    for (const url of urls) {
        const image = new Image();
        image.src = url;
        try { await image.decode(); } catch { drawn.push(null); continue; }
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d", {colorSpace: "srgb"});
        context.fillStyle = "white";
        context.fillRect(0, 0, canvas.width, canvas.height);
        context.drawImage(image, 0, 0);
        const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
        let text = "";
        for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
        drawn.push([canvas.width, canvas.height, btoa(text)]);
    }
    return drawn;
}"""


@pytest.mark.slow
def test_chromium_draws_the_pixels_that_we_decode(browser):
    files = {name: data for name, data in (sound_files() | odd_files()).items() if not name.endswith(NOT_SHOWN)}
    assert len(files) >= 50
    page = browser.new_page()
    urls = [f"data:image/{_kind(name)};base64,{base64.b64encode(data).decode()}" for name, data in files.items()]
    drawn = page.evaluate(_DRAW, urls)
    page.close()
    differing, compared = {}, 0
    for (name, data), pixels in zip(files.items(), drawn, strict=True):
        ours = decode(data).image
        if pixels is None:
            differing[name] = "not shown"
            continue
        width, height, text = pixels
        theirs = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]
        compared += 1
        if ours.shape != theirs.shape:
            differing[name] = f"{ours.shape} {theirs.shape}"
            continue
        mean = np.abs(ours.astype(int) - theirs).mean()
        if mean >= TOLERANCE:
            differing[name] = f"{mean:.1f} levels"
    assert differing.keys() <= KNOWN.keys(), differing
    assert compared >= 50


@pytest.mark.slow
def test_chromium_shows_the_same_of_files_that_are_cut_or_have_broken_exif(browser):
    files = {name: cut for name, (_, cut) in cut_files().items() if not name.endswith(NOT_SHOWN)}
    files |= {f"{name}.avif": data for name, data in with_broken_exif("AVIF").items()}
    page = browser.new_page()
    urls = [f"data:image/{_kind(name)};base64,{base64.b64encode(data).decode()}" for name, data in files.items()]
    drawn = dict(zip(files, page.evaluate(_DRAW, urls), strict=True))
    page.close()
    compared = set()
    for name, data in files.items():
        if drawn[name] is None:
            continue
        width, height, text = drawn[name]
        theirs = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]
        if (theirs == 255).all():  # It draws nothing of an AVIF that is cut
            continue
        ours = decode(data).image
        assert ours.shape == theirs.shape, name
        # What is missing, Chromium leaves white, and we fill: at the end, or the beginning of a BMP; of an interlaced
        # GIF every second row
        rows = np.abs(ours.astype(int) - theirs).mean(axis=(1, 2)) < TOLERANCE
        assert rows.mean() > 0.85, (name, rows.mean())
        compared.add(name)
    assert compared >= {"cut.jpg", "cut.png", "cut.gif", "cut.bmp", "garbage.avif"}


def _kind(name: str) -> str:
    ending = name.rsplit(".", 1)[1]
    return {"jpg": "jpeg"}.get(ending, ending)
