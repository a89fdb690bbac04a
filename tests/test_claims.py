"""The table of claims: its forms on a document of our own, and that README and docs have a line for each figure."""

import pytest

from benchmarks import claims
from benchmarks.claims import Claim

DOCUMENT = """# Speed

A run takes 2.0 s, of which **1.5 s** are
work; at most 3 GiB.

| engine | ms | times |
|---|---|---|
| ours | 10 | **4.0** |
| theirs | 40 | 1.0 |

`--seconds 5 s` and:

```bash
sleep 7 s
```
"""
PRINTED = """conditions
run 2.1 s
work 1.4 s

| engine | ms | times |
|---|---|---|
| theirs | 43 | 1.0 |
| ours | 11 | 3.9 |
"""


def claim(pattern: str, printed: str = "", table: bool = False, tolerance: float = 0.1, bound: str = "") -> Claim:
    return Claim("docs/x.md", pattern, table, printed or (pattern if table else ""), tolerance, bound)


def test_figures_of_a_text_and_of_a_table_stand_beside_what_was_printed():
    told = claims.compare(claim("takes {} s, of which {} s", "run {} s ... work {} s"), DOCUMENT, PRINTED)
    assert [row[1:] for row in told] == [("2 1.5", "2.1 1.4", "holds")]
    told = claims.compare(claim("| engine | ms |", table=True), DOCUMENT, PRINTED)
    assert [row[1:] for row in told] == [("10 4", "11 3.9", "holds"), ("40 1", "43 1", "holds")]


@pytest.mark.parametrize(
    ("tolerance", "bound", "verdict"),
    [(0.1, "", "holds"), (0.04, "", "differs"), (0.0, "least", "holds"), (0.0, "most", "differs")],
)
def test_how_far_what_is_measured_may_be_off(tolerance, bound, verdict):
    (row,) = claims.compare(claim("takes {} s", "run {} s", tolerance=tolerance, bound=bound), DOCUMENT, PRINTED)
    assert row[3] == verdict


def test_what_a_command_does_not_print_does_not_hold():
    (row,) = claims.compare(claim("takes {} s", "walk {} s"), DOCUMENT, PRINTED)
    assert row[3] == "not printed"
    rows = claims.compare(claim("| engine | ms |", table=True), DOCUMENT, PRINTED.replace("ours", "another's"))
    assert [row[3] for row in rows] == ["not printed", "holds"]


def test_every_figure_needs_a_line_but_those_in_code():
    missing = claims.uncovered(DOCUMENT, [], {})
    assert len(missing) == 7  # 2.0 s, 1.5 s, 3 GiB, and four cells
    lines = [claim("takes {} s, of which {} s"), claim("| engine | ms |", table=True)]
    assert [figure for figure in claims.uncovered(DOCUMENT, lines, {}) if "GiB" not in figure] == []
    assert not claims.uncovered(DOCUMENT, lines, {"texts": ["at most 3 GiB"]})
    assert not claims.uncovered(DOCUMENT, lines, {"paragraphs": ["A run takes"]})


def test_every_figure_of_readme_and_docs_has_its_line():
    assert claims.check() == []
