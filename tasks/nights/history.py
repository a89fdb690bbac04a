"""Every figure of every night, one row each: OUTPUT/metrics/<night>.parquet."""

import datetime
from typing import Any

import pyarrow as pa

from tasks import storage
from tasks.evaluation.record import evaluation_of
from tasks.nights.baselines import Night
from tasks.parquet_files import read_parquet, write_parquet
from tasks.storage import Location

METRICS = pa.schema(
    [
        ("run", pa.string()),
        ("time", pa.timestamp("s", tz="UTC")),
        ("model", pa.string()),
        ("variant", pa.string()),
        ("model_digest", pa.string()),
        ("commit", pa.string()),
        ("dataset", pa.string()),
        ("split_digest", pa.string()),
        ("images", pa.int64()),
        ("protocol", pa.string()),
        ("stage", pa.string()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("trimap_px", pa.int32()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
"""Columns of the metrics; values are shares, 0 to 1, low and high the 95 % interval. `class` is null for a figure over
all classes, `trimap_px` for one over all pixels."""


def append_metrics(output: Location, night: Night, records: dict[str, dict[str, Any]]) -> None:
    """Write the rows of a night; nothing where nothing was evaluated. records: by identity of the evaluation."""
    rows: list[dict[str, Any]] = []
    time = datetime.datetime.fromisoformat(night.time)
    for record in records.values():
        of = evaluation_of(record)
        common = {
            "run": night.run,
            "time": time,
            "model": of.model,
            "variant": of.variant,
            "model_digest": of.digest,
            "commit": of.commit,
            "dataset": of.dataset,
            "split_digest": of.split_digest,
            "images": record["images"],
            "protocol": of.protocol,
        }
        for stage, figures in record["figures"].items():
            overall = {"stage": stage, "class": None, "trimap_px": None}
            for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
                rows.append(common | overall | {"measure": name} | figures[name])
            for name, figure in figures["iou"].items():
                values = {end: figure[end] for end in ("value", "low", "high")}
                rows.append(common | overall | {"class": name, "measure": "iou"} | values)
            for name, curve in figures["trimap"].items():
                for width, figure in enumerate(curve, start=1):
                    rows.append(common | overall | {"trimap_px": width, "measure": name} | figure)
    if rows:
        write_parquet(output / "metrics" / f"{night.run}.parquet", pa.Table.from_pylist(rows, schema=METRICS))


def read_metrics(output: Location) -> list[dict[str, Any]]:
    """Rows of mean IoU over all pixels, of every night, oldest first."""
    rows: list[dict[str, Any]] = []
    for file in storage.list_files(output / "metrics"):
        place, of_all = output / "metrics" / file.path, [("measure", "=", "mean_iou")]
        table = read_parquet(place, "remove it, and the history goes without its night", filters=of_all)
        rows += [r for r in table.to_pylist() if r["trimap_px"] is None]
    return sorted(rows, key=lambda row: row["time"])
