"""Options come from the models of jobs: spelling, types, defaults, bounds, and the sentence about what does not fit."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Interval
from cyclopts import App
from pydantic import BaseModel

from flows.options import Found, UsageError, fields_of, make, options


@dataclass(frozen=True)
class Sharpening:
    """Inner values."""

    reach_px: Annotated[float, Interval(ge=1, le=100)] = 7.0
    """Reach in pixels. A second sentence."""


@dataclass(frozen=True)
class Scoring:
    """Inner values that are always there."""

    scales: tuple[Annotated[float, Ge(0.1)], ...] = (1.0,)
    """Scales to score at."""


class Job(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What a person asks for."""

    source: str
    """Where images are."""

    output: str
    """Where masks go."""

    mode: Literal["fast", "slow"] = "fast"
    """How hard to try."""

    keep: bool = True
    """Keep what is there."""

    classes: tuple[str, ...] = ()
    """Names."""

    lists: dict[str, str] | None = None
    """Files by split."""

    inference: Scoring = Scoring()
    """How scores are made."""

    crf: Sharpening | None = Sharpening()
    """Sharpen; None leaves it out."""


def parse(*tokens):
    got = []

    @options(
        arguments=("source", "output"),
        names={"classes": "--class -c"},
        found={"output": Found("SOURCE-masks", lambda given: given["source"] + "-masks")},
    )
    def run(job: Job, *, loud: bool = False) -> None:
        """Do it."""
        got.append((job, loud))

    app = App(name="tool", result_action="return_value")
    app.default(run)
    app(list(tokens), exit_on_error=False, print_error=False)
    return got[0]


def test_what_is_not_given_is_the_default_of_the_job():
    assert parse("a", "b") == (Job(source="a", output="b"), False)
    assert parse("a")[0].output == "a-masks"


def test_every_kind_of_value():
    job, loud = parse(
        *("a", "--mode", "slow", "--no-keep", "-c", "cat", "--class", "dog", "--lists", "val=v.txt"),
        *("--scales", "0.5, 1", "--crf-reach", "9", "--loud"),
    )
    assert loud and job.mode == "slow" and not job.keep and job.classes == ("cat", "dog")
    assert job.lists == {"val": "v.txt"} and job.inference.scales == (0.5, 1.0) and job.crf == Sharpening(9.0)
    assert parse("a", "--no-crf")[0].crf is None


def test_what_does_not_fit_names_the_option():
    for tokens, words in [
        (("a", "--crf-reach", "200"), "--crf-reach: input should be less than or equal to 100"),
        (("a", "--scales", "0.01"), "--scales: input should be greater than or equal to 0.1"),
        (("a", "--no-crf", "--crf-reach", "9"), "--no-crf and --crf-reach exclude each other"),
        (("a", "--lists", "val"), "--lists val is not NAME=FILE"),
    ]:
        with pytest.raises(UsageError, match=words):
            parse(*tokens)


def test_help_and_bounds_are_those_of_the_model():
    fields = {field.path: field for field in fields_of(Job)}
    assert list(fields) == [
        *("source", "output", "mode", "keep", "classes", "lists", "inference.scales", "crf", "crf.reach_px"),
    ]
    assert fields["crf.reach_px"].bounds == "1 to 100" and fields["crf.reach_px"].default == 7.0
    assert fields["mode"].help == "How hard to try." and fields["crf"].switch


def test_a_field_that_is_missing_is_named():
    with pytest.raises(UsageError, match="OUTPUT must be given"):
        make(Job, {"source": "a"}, {"output": "OUTPUT"})
