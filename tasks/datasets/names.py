"""Names of files: which mask is which image's, and which image a line of a list means."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

from segcore.datasets.pair_check import Finding, Kind
from tasks.datasets.layout import IMAGE_ENDINGS, MASK_ENDINGS, FileRef, Layout, Pair, ending_of, relative

MASK_SUFFIX = re.compile(
    r"[._ -](?:masks?|labels?|gt|seg|segmentation|annotation|annot|groundtruth|target|l"
    r"|gtfine_labeltrainids|gtfine_labelids|labeltrainids|labelids)$"
)
_IMAGE_SUFFIX = re.compile(r"[._ -](?:leftimg8bit|image|img|rgb)$")
_WITHIN = re.compile(rf"(?:{'|'.join(map(re.escape, IMAGE_ENDINGS))})[\"']?[\s,;]", re.IGNORECASE)
"""An ending of an image that more follows on: the text has several columns."""


COUNT_COLUMN = re.compile(r"[\"']?\d+[\"']?\s*[,;|\t]\s*")
"""The number of a line in front of its other columns, as Pandas writes it."""


class NamedFile(NamedTuple):
    """An image or a mask by its name."""

    split: str
    """Folder of a split that it lies in; empty where there is none."""

    key: str
    """Path without ending, roles and splits."""

    file: FileRef
    """Where it is."""


def folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _image_stem(key: str) -> str:
    return _IMAGE_SUFFIX.sub("", folded(key))


def _mask_stem(key: str) -> str:
    stem = MASK_SUFFIX.sub("", folded(key))
    ending = PurePosixPath(stem).suffix
    return _image_stem(stem.removesuffix(ending) if ending in IMAGE_ENDINGS else stem)


def _unique(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Ids by name, of those names alone that mean one id."""
    found: dict[str, set[str]] = {}
    for name, image_id in entries:
        found.setdefault(name, set()).add(image_id)
    return {name: ids.pop() for name, ids in found.items() if len(ids) == 1}


class Names:
    """Looks up what lines of lists mean."""

    def __init__(self, ids: Iterable[str], also: Iterable[tuple[str, str]] = ()) -> None:
        """ids: known ones. also: other names with the ids that they mean, such as paths of files."""
        named = [(i, i) for i in ids]
        self._exact = {unicodedata.normalize("NFC", name): image_id for name, image_id in named}
        self._folded = _unique((folded(name), image_id) for name, image_id in named)
        self._tails = _unique(
            ("/".join(parts[start:]), image_id)
            for parts, image_id in ((folded(name).split("/"), i) for name, i in [*named, *also])
            for start in range(len(parts))
        )

    def find(self, text: str) -> str | None:
        """The id that a name or a path means, in whatever form; None where it means none."""
        path = unicodedata.normalize("NFC", text.strip().strip("\"'").strip().replace("\\", "/"))
        path = re.sub(r"^(?:[A-Za-z]:)?(?:\.?/)*", "", path)
        parts = [part for part in path.split("/") if part]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for name in (tail, re.sub(r"\.\w{1,5}$", "", tail)):
                folded = name.casefold()
                found = self._exact.get(name) or self._folded.get(folded) or self._tails.get(folded)
                if found is not None:
                    return found
        return None

    def id_of(self, line: str) -> str | None:
        """The id that a line of a list means."""
        return self.resolve(line)[0]

    def resolve(self, line: str) -> tuple[str | None, str]:
        """The id that a line means, as a name, a path, or the first of several columns; and the other columns."""
        columns = [(line, ""), *((head, rest) for head, _, rest in map(line.partition, "\t,;"))]
        words = line.split()
        columns += [(" ".join(words[:k]), " ".join(words[k:])) for k in range(len(words) - 1, 0, -1)]
        columns = [(head, rest) for head, rest in columns if not _WITHIN.search(head)]
        for head, rest in columns:
            if (found := self.find(head)) is not None:
                return found, rest
        counted = COUNT_COLUMN.match(line)
        return (None, "") if counted is None else self.resolve(line[counted.end() :])


class Pairing:
    """Images with their masks by id, and what has no partner."""

    def __init__(self, images: Sequence[NamedFile], masks: Sequence[NamedFile], layout: Layout) -> None:
        """Findings about names go to the layout."""
        self._layout = layout
        by_image, by_mask = self._named(images), self._named(masks)
        joined = {name: name for name in by_image.keys() & by_mask.keys()}
        for stems in ((folded, folded), (_image_stem, _mask_stem)):
            joined |= self._alike(by_image.keys() - joined.keys(), by_mask.keys() - set(joined.values()), *stems)
        times = Counter(key for _, key in by_image)
        self.pairs: dict[str, Pair] = {}
        self.split_of: dict[str, str] = {}
        paths: list[tuple[str, str]] = []
        exact = any(name == other for name, other in joined.items())
        for name, image in by_image.items():
            split, key = name
            image_id = f"{split}/{key}" if times[key] > 1 and split else key
            mask = by_mask[joined[name]].file if name in joined else None
            self.pairs[image_id] = Pair(image_id, image.file, mask, layout.name)
            self.split_of[image_id] = split
            paths.append((_path_of(image.file), image_id))
            if mask is not None and exact and joined[name] != name:
                detail = f"its mask is {mask.place.name}"
                layout.findings.append((relative(layout.root, image.file.place), Finding(Kind.NAMED_ALIKE, detail)))
        for name in by_mask.keys() - set(joined.values()):
            split, key = name
            lone = next(i for i in (key, f"{split}/{key}", f"mask {split}/{key}") if i not in self.pairs)
            self.pairs[lone] = Pair(lone, None, by_mask[name].file, layout.name)
        self._names = Names(self.pairs, paths)
        self._masks = {_path_of(mask.file): mask.file for mask in by_mask.values()}
        self._mask_names = Names((), [(path, path) for path in self._masks])

    def resolve(self, line: str) -> str | None:
        """The id that a line of a list means; where the line names a mask too, that one is the image's."""
        image_id, rest = self._names.resolve(line)
        if image_id is not None and ending_of(rest.strip("\"' ")) in MASK_ENDINGS:
            path = self._mask_names.find(rest)
            pair = self.pairs[image_id]
            if path is not None and pair.mask != self._masks[path]:
                for other in [k for k, p in self.pairs.items() if p.image is None and p.mask == self._masks[path]]:
                    del self.pairs[other]
                self.pairs[image_id] = replace(pair, mask=self._masks[path])
        return image_id

    def example(self) -> str:
        """An image and a mask that found no partner, for a person."""
        files = [pair.image or pair.mask for pair in self.pairs.values()]
        image = next((pair.image.place.name for pair in self.pairs.values() if pair.image is not None), "no image")
        mask = next((pair.mask.place.name for pair in self.pairs.values() if pair.mask is not None), "no mask")
        return f"{image} and {mask}, of {len(files)} files"

    def _named(self, files: Sequence[NamedFile]) -> dict[tuple[str, str], NamedFile]:
        """Files by split and key; of several under one name the last, and a finding for each other."""
        found: dict[tuple[str, str], NamedFile] = {}
        for file in files:
            name = (file.split, unicodedata.normalize("NFC", file.key))
            if name in found:
                unused, used = found[name].file.place, file.file.place
                together = PurePosixPath(unused.path).parent == PurePosixPath(used.path).parent
                detail = f"{used.name if together else relative(self._layout.root, used)} is used"
                self._layout.findings.append((relative(self._layout.root, unused), Finding(Kind.SAME_NAME, detail)))
            found[name] = file
        return found

    @staticmethod
    def _alike(
        images: Iterable[tuple[str, str]],
        masks: Iterable[tuple[str, str]],
        image_stem: Callable[[str], str],
        mask_stem: Callable[[str], str],
    ) -> dict[tuple[str, str], tuple[str, str]]:
        """Images and masks that only one of each is named so alike."""
        by_stem: dict[tuple[str, str], tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {}
        for name in images:
            by_stem.setdefault((name[0], image_stem(name[1])), ([], []))[0].append(name)
        for name in masks:
            by_stem.setdefault((name[0], mask_stem(name[1])), ([], []))[1].append(name)
        return {left[0]: right[0] for left, right in by_stem.values() if len(left) == len(right) == 1}


def _path_of(file: FileRef) -> str:
    return str(PurePosixPath(file.place.path).with_suffix("")).lstrip("/")
