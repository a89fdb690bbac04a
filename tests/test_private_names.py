from tests.private_names import Use, project, uses

KNOWN = {
    # Of torch: the one way to fused kernels
    "_is_mkldnn_bf16_supported",
    "_convolution_pointwise",
    "_foreach_lerp_",
    # Python's own: its reader of tar archives has no other bound on a header
    "_proc_gnulong",
    "_proc_pax",
    # Of Ray, until its engine does without
    "_private",
    "_current_executor",
}
"""What is left; a list that only becomes shorter."""


def test_no_further_private_name_of_another_package_is_used():
    assert [str(use) for use in project() if use.name not in KNOWN] == []


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
