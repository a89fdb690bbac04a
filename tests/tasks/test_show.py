"""One photograph in, one picture out: from a path or the web, equal to what the library and the archive make of it."""

import http.server
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import segcore.predictor
import segcore.scoring.inference
from flows.cli import app
from segcore.images.masks import decode_mask
from tasks.segmentation.archive_job import DEFAULT_MODEL
from tests.console import invoke


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "a photo.jpg"
    rows, columns = np.mgrid[:60, :90]
    Image.fromarray(np.stack([rows * 4, columns * 2, rows + columns], axis=-1).astype(np.uint8)).save(path)
    return path


def test_the_picture_and_the_mask_are_those_of_the_library(photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = invoke(app, "show", photograph, "--untrained", "--mask", "mask.png", "--long-side", "65")
    assert shown.exit_code == 0, shown.output
    assert "90 x 60 px" in shown.stdout and (tmp_path / "a photo-overlay.png").as_uri() in shown.stdout
    params = segcore.predictor.PredictParams(segcore.scoring.inference.InferenceParams(long_side_px=65))
    found = segcore.load(DEFAULT_MODEL, untrained=True, params=params).segment(photograph)
    assert np.array_equal(decode_mask((tmp_path / "mask.png").read_bytes()), found.labels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a photo-overlay.png")), found.overlay())


def test_a_web_address(photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(photograph.parent)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        options = ("--untrained", "--long-side", "65", "--to", tmp_path / "x.png")
        shown = invoke(app, "show", f"{address}/a%20photo.jpg?size=1", *options)
        assert shown.exit_code == 0 and (tmp_path / "x.png").exists(), shown.output
        missing = invoke(app, "show", f"{address}/none.jpg", *options)
        assert missing.exit_code == 1 and "cannot be fetched: HTTP Error 404" in missing.stderr
        server.shutdown()


def test_what_cannot_be_shown_is_one_sentence(photograph, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for arguments, words in [
        ((tmp_path / "none.jpg",), "does not exist"),
        ((tmp_path,), "is a folder: `segment-archive run"),
        ((tmp_path / "text.jpg", "--untrained"), "text.jpg cannot be segmented"),
        ((photograph, "--model", "pspnet-15"), "did you mean"),
        ((photograph, "--untrained", "--to", tmp_path / "no" / "x.png"), "Cannot write"),
        ((photograph, "--untrained", "--to", tmp_path / "x.xyz"), "Cannot write"),
    ]:
        shown = invoke(app, "show", *arguments)
        assert shown.exit_code == 1 and words in shown.stderr, shown.output
        assert len(shown.stderr.splitlines()) == 1 and "[Errno" not in shown.stderr


def test_where_no_browser_can_be_started_the_address_is_said(photograph, monkeypatch):
    monkeypatch.chdir(photograph.parent)
    # A process of its own: webbrowser looks for browsers once
    command = [sys.executable, "-m", "flows.cli", "show", str(photograph), "--untrained", "--long-side", "65", "--open"]
    told = subprocess.run(command, env=os.environ | {"BROWSER": "false"}, capture_output=True, text=True, check=True)
    assert re.search(r"No browser could be started here: open file://\S+ where there is one\.", told.stderr)
