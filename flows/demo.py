"""`make demo`: the console's own commands on the photographs of `examples/`, and a picture."""

import os
import time
from pathlib import Path

from flows import cli, execution

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the demo; everything that it makes is in demo-output/."""
    os.chdir(ROOT)
    start = time.monotonic()
    for command in (
        ["run", "examples/photographs", "demo-output"],
        ["query", "demo-output", "SELECT class, count(*) AS images FROM objects GROUP BY ALL ORDER BY images DESC"],
    ):
        print("$ segment-archive " + " ".join(f'"{word}"' if " " in word else word for word in command))
        cli.app(command)
    from tasks.archive.output import Output

    output = Output.at("demo-output")
    print(f"All of them in one picture: {output.gallery_folder(output.choose()['run_id']).uri}/contact-sheet.png")
    print(f"The demo took {time.monotonic() - start:.0f} s. For commands of your own: source .venv/bin/activate")


if __name__ == "__main__":
    execution.main(main)
