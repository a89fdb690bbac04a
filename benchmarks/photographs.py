"""The photographs of the benchmarks: five of `examples/`, always the same, so that figures of two days compare."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "photographs"
FIVE = [EXAMPLES / f"{name}.jpg" for name in ("astronaut", "cameraman", "cat", "coffee", "rocket")]
