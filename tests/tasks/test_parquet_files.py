"""A damaged file is named with its remedy, and is told apart from storage that does not give it."""

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import JobError
from tasks.parquet_files import naming_damage, read_parquet, whole_parquet
from tasks.storage import locate


def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    place = locate(str(tmp_path / "rows.parquet"))
    for within in (whole_parquet, naming_damage):
        named = pytest.raises(JobError, match=r"rows.parquet is no whole Parquet file \(.+\): remove it\.$")
        with named, within(place, "remove it"):
            pq.ParquetFile(place.path)
    with pytest.raises(JobError, match=r"rows.parquet is no whole Parquet file \(.+\): remove it\.$"):
        read_parquet(place, "remove it")
    with pytest.raises(FileNotFoundError):
        read_parquet(locate(str(tmp_path / "absent.parquet")), "remove it")


def test_what_storage_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "rows.parquet"))
    with pytest.raises(JobError, match=r"rows.parquet does not exist"), whole_parquet(place, "remove it"):
        Path(place.path).read_bytes()
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.EIO, "broken disk"), MemoryError()):
        with pytest.raises(type(error)), naming_damage(place, "remove it"):
            raise error
    with pytest.raises(JobError, match=r"^of another kind$"), naming_damage(place, "remove it"):
        raise JobError("of another kind")
