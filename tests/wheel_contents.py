"""What a wheel holds and must not hold: `python tests/wheel_contents.py dist/*.whl`, the last step of `make wheel`."""

import re
import sys
import zipfile

FOREIGN = re.compile(
    r"\.(cpp|hpp|inl|h|ipynb)$|^(tests|benchmarks|infra|docs|examples)/|/pspnet14/|/__pycache__/|\.run/|\.github/"
)
NEEDED = (
    r"^flows/cli\.py$",
    r"^segcore/_crf\..*(so|pyd)$",
    r"^segcore/_layers\..*(so|pyd)$",
    r"^segcore/weights_bundled/pspnet_lite2/(model\.safetensors|card\.json)$",
    r"^tasks/results/report_assets/report\.js$",
    r"^tasks/models/weights_catalogue\.toml$",
    r"^tasks/datasets/mirrors\.toml$",
    r"/licenses/LICENSE$",
)
MOST_BYTES = 16_000_000


def faults(names: list[str], size: int) -> list[str]:
    """Sentences about a wheel of these files and this many bytes; none where it is right."""
    found = [f"{name} does not belong into a wheel" for name in names if FOREIGN.search(name)]
    found += [
        f"nothing is named {pattern}" for pattern in NEEDED if not any(re.search(pattern, name) for name in names)
    ]
    return found + ([f"{size} bytes are more than {MOST_BYTES}"] if size > MOST_BYTES else [])


def main() -> None:
    wrong = []
    for path in sys.argv[1:]:
        with zipfile.ZipFile(path) as wheel:
            names, size = wheel.namelist(), sum(entry.compress_size for entry in wheel.infolist())
        wrong += [f"{path}: {fault}" for fault in faults(names, size)]
        print(f"{path}: {len(names)} files, {size / 1e6:.1f} MB")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
