from tests.private_names import Use, project, uses

KNOWN = {
    ("segcore/models/layers.py", "_is_mkldnn_bf16_supported"),
    ("segcore/models/layers.py", "_convolution_pointwise"),  # The one way to a fused kernel
    ("segcore/moving_average.py", "_foreach_lerp_"),
    ("tasks/strict_tar.py", "_proc_gnulong"),  # Python's own; its reader has no other bound on a header
    ("tasks/strict_tar.py", "_proc_pax"),
    ("tasks/strict_tar.py", "_block"),
    # Of Ray, until its engine does without
    ("tasks/cluster.py", "_private"),
    ("tasks/stream/care.py", "_private"),
    ("tasks/stream/growth.py", "_current_executor"),
}
"""What is left; a list that only becomes shorter."""


def test_no_further_private_name_of_another_package_is_used():
    assert [str(use) for use in project() if (use.file, use.name) not in KNOWN] == []


def test_private_names_are_seen_in_every_form():
    source = """
import ray._private.worker
from s3fs import _errors
class Mine:
    _own = 1
    def _method(self): self._field = store._call_s3(self._own); return Mine._method, self._field.__class__
    def _theirs(self): return super()._theirs()
"""
    found = list(uses({"a.py": source}))
    assert found == [
        Use("a.py", 2, "_private"),
        Use("a.py", 3, "_errors"),
        Use("a.py", 6, "_call_s3"),
        Use("a.py", 7, "_theirs"),
    ]
