"""The trial on a GPU: every variant is in it, and it goes on where it was stopped."""

from pathlib import Path

import pytest

from benchmarks import gpu
from segcore import models


def test_every_variant_is_compared_and_the_trial_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f"parity-{name}" for name in models.NAMES} < set(gpu.parts())
    seen = tmp_path / "seen"
    fails = f"from pathlib import Path; p = Path({str(seen)!r}); print('tried'); q = p.exists(); p.touch(); exit(not q)"
    parts = {"sound": ["-c", "import time; print('at', time.time_ns())"], "fails-once": ["-c", fails]}
    monkeypatch.setattr(gpu, "parts", lambda: parts)
    with pytest.raises(SystemExit):
        gpu.trial(tmp_path / "out", [])
    first = (tmp_path / "out/sound.txt").read_text()
    report = (tmp_path / "out/report.md").read_text()
    assert "No GPU was there" in report or gpu.HERE
    assert first in report and "## fails-once, failed" in report and "tried" in report

    gpu.trial(tmp_path / "out", [])
    assert (tmp_path / "out/sound.txt").read_text() == first
    assert "failed" not in (tmp_path / "out/report.md").read_text()
    with pytest.raises(SystemExit, match="nothing is no part"):
        gpu.trial(tmp_path / "out", ["nothing"])
