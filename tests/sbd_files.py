"""SBD's annotations and archives in their exact structure, made by SciPy, which is also how others read them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse


def annotation(labels: np.ndarray, *, compressed: bool = True) -> bytes:
    """A file as in SBD's `cls`: struct GTcls with Boundaries, Segmentation, CategoriesPresent."""
    boundaries = np.empty((20, 1), dtype=object)
    for k in range(20):
        edge = np.zeros(labels.shape, bool)
        edge[:, 1:] = (labels[:, 1:] == k + 1) != (labels[:, :-1] == k + 1)
        boundaries[k, 0] = scipy.sparse.csc_matrix(edge.astype(np.float64))
    present = np.setdiff1d(np.unique(labels), [0]).astype(np.uint8)[:, None]
    struct = np.empty((1, 1), dtype=[("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)])
    struct[0, 0] = (boundaries, labels, present)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"GTcls": struct}, do_compression=compressed)
    return buffer.getvalue()


def tar_of(folder: Path, archive: Path, prefix: str) -> Path:
    """A tar archive (gzipped by the name's ending) of a folder, its paths below a prefix."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as tar:
        tar.add(folder, prefix)
    return archive
