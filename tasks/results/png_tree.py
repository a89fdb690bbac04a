"""The masks of a run as PNG files of their own, under the names of an export, brought up to date when a run ends."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tasks import progress, storage
from tasks.archive.output import Output
from tasks.results.export import SUMMARY
from tasks.results.export_formats.folders import NAMES
from tasks.results.export_names import file_names, name_bytes
from tasks.results.reading import Piece, Results, open_results

_WORKERS = 8


def update_png_tree(output: Output, run_id: str) -> None:
    """Give every mask of a run its PNG file; what an earlier update wrote of the same rows is not written again.

    Files that lost their name, or whose image has no mask any more, are removed. Other files are left alone.
    """
    folder = output.png_folder(run_id)
    results = open_results(output.uri, run_id)
    there = {file.path for file in storage.list_files(folder)}
    files = [[file.place.name, file.size, file.version] for file in results.files]
    done, before = _earlier(output, run_id) if SUMMARY in there else ([], {})
    if there and SUMMARY not in there:
        progress.say(
            f"{folder.uri} holds files of an earlier version, named x.jpg.png. They stay; the new ones are x.png, as "
            "an export names them."
        )
    if done == files and all(f"{name}.png" in there for name in before.values()):
        return
    rows = results.to_arrow(["image_id", "uri", "mask_width", "mask_file"]).to_pylist()
    names = file_names([row["image_id"] for row in rows], ".png", name_bytes(folder))

    def write(piece: Piece) -> None:
        ids = Results.read_piece(piece, ["image_id"])["image_id"].to_pylist()
        if [piece.file.place.name, piece.file.size, piece.file.version] in done:
            ids = [i for i in ids if i in before and (names[i] != before[i] or f"{before[i]}.png" not in there)]
        if not ids:
            return
        wanted = set(ids)
        for row in Results.read_piece(piece, ["image_id", "mask"]).to_pylist():
            if row["mask"] is not None and row["image_id"] in wanted:
                storage.write_whole(folder / f"{names[row['image_id']]}.png", row["mask"], durable=False)

    if SUMMARY not in there:  # So that a tree that was begun is known as one
        storage.write_whole(folder / SUMMARY, json.dumps({"files": []}).encode())
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(write, results.pieces))
    # Those beside their rows are files of their own already
    with_mask = [row for row in rows if row["mask_width"] is not None and row["mask_file"] is None]
    for name in set(before.values()) - {names[row["image_id"]] for row in with_mask}:
        storage.remove(folder / f"{name}.png")
    lines = [{"name": names[row["image_id"]], "image_id": row["image_id"], "uri": row["uri"]} for row in with_mask]
    storage.write_whole(folder / NAMES, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    storage.write_whole(folder / SUMMARY, json.dumps({"files": files}).encode())


def _earlier(output: Output, run_id: str) -> tuple[list[Any], dict[str, str]]:
    """The mask files that the last update was of, and its names by image; nothing where they cannot be read."""
    folder = output.png_folder(run_id)
    try:
        files = json.loads(storage.read_bytes(folder / SUMMARY))["files"]
        lines = storage.read_bytes(folder / NAMES).decode().splitlines()
        return files, {line["image_id"]: line["name"] for line in map(json.loads, lines)}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return [], {}
