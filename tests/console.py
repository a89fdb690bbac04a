"""Console commands in this process, ended as the real command ends them."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from flows import execution


@dataclass
class Told:
    """What a command printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(app: Callable[[list[str]], object], *arguments: object) -> Told:
    """Run the application with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with execution.guarded():
                app([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Told(int(str(code or 0)), out.getvalue(), err.getvalue())
