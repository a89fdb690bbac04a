"""Whether an installed wheel works by itself: `python -P tests/wheel_smoke.py`, in an environment with nothing else.

Imports both extensions, segments a photograph that it makes, and runs the command over a folder of two.
"""

import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import segcore
from segcore import _crf, _layers
from segcore.crf import dense_crf


def main() -> None:
    assert "site-packages" in segcore.__file__, f"imported from {segcore.__file__}"
    assert _layers.__file__
    assert dense_crf.engine_name().startswith("native"), dense_crf.engine_name()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        shade = np.linspace(0, 255, 160 * 120 * 3).reshape(120, 160, 3).astype(np.uint8)
        for number in range(2):
            Image.fromarray(np.roll(shade, 40 * number, axis=1)).save(folder / "photos" / f"{number}.jpg")
        result = segcore.load("pspnet_lite2", num_threads=1).segment(folder / "photos" / "0.jpg")
        assert result.labels.shape == (120, 160)
        command = Path(sysconfig.get_path("scripts")) / "segment-archive"
        subprocess.run([command, "run", folder / "photos", "--quiet"], check=True)
        assert list((folder / "photos-masks" / "report").glob("*/index.html"))
        found = subprocess.run([command, "find", folder / "photos-masks", "--json"], check=True, capture_output=True)
        assert found.stdout.startswith(b"["), found.stdout
    without = [name for name in ("torch", "ray", "prefect") if name not in sys.modules]
    print(
        f"CPython {platform.python_version()}: {Path(_crf.__file__).name}, {dense_crf.engine_name()}, without {without}"
    )


if __name__ == "__main__":
    main()
