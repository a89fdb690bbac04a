"""Training images are known again as files, saved again, in other sizes and mirrored; others are not."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.numpy import save

from segcore.datasets.near_duplicates import VERSION
from segcore.datasets.seen_images import SEEN_FILE, SeenImages, look_at
from segcore.models import checkpoint
from tests.conftest import photograph


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def real(voc, count: int) -> list[bytes]:
    return [file.read_bytes() for file in sorted((voc / "JPEGImages").glob("*.jpg"))[:count]]


def test_copies_are_told_from_what_looks_alike(voc):
    files = real(voc, 10)
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    seen = SeenImages.of(look_at(files[:6]))
    scored = [
        files[2],  # The very file
        jpeg(pictures[0], 50),
        jpeg(pictures[1].resize((250, 180))),
        jpeg(ImageOps.mirror(pictures[3]), 70),
        jpeg(ImageOps.mirror(pictures[4]).convert("L").resize((200, 150))),
        *files[6:],
        b"no image",
    ]
    overlap = seen.overlap(look_at(scored))
    assert (overlap.copies, overlap.similar, overlap.mirrored) == ([0], [1, 2], [3, 4])


def test_a_file_is_read_back_and_does_not_tell_the_order():
    looks = look_at([jpeg(photograph(k, (80, 60))) for k in range(6)])
    seen = SeenImages.of(looks, "coco")
    again = SeenImages.from_bytes(seen.to_bytes())
    assert np.array_equal(again.digests, np.sort(looks.digests)) and again.unknown == "coco"
    assert np.array_equal(again.fingerprints, np.unique(looks.fingerprints))
    backwards = look_at([jpeg(photograph(k, (80, 60))) for k in reversed(range(6))])
    assert SeenImages.of(backwards, "coco").to_bytes() == seen.to_bytes()
    assert len(seen.to_bytes()) < 6 * 16 + 400


def test_a_training_that_went_on_saw_what_the_first_one_saw():
    first, second = (look_at([jpeg(photograph(k, (80, 60)))]) for k in range(2))
    both = SeenImages.of(first, "coco") | SeenImages.of(second)
    assert both.overlap(first).copies == both.overlap(second).copies == [0] and both.unknown == "coco"
    assert (both | SeenImages.none("sbd")).unknown == "coco, sbd"


def test_hashes_of_another_version_compare_with_nothing():
    looks = look_at([jpeg(photograph(0, (80, 60)))])
    told = {"format": "segment-archive training images 1", "fingerprint": str(VERSION + 1), "unknown": ""}
    arrays = {"digests": looks.digests, "fingerprints": looks.fingerprints}
    other = SeenImages.from_bytes(save(arrays, metadata={"about": json.dumps(told)}))
    assert other.overlap(looks).copies == [0] and not len(other.fingerprints) and "another version" in other.unknown


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        save({"digests": np.zeros(2, np.uint64), "fingerprints": np.zeros(0, np.uint64)}),
        save({"digests": np.zeros(2, np.float32)}, metadata={"about": "{}"}),
    ],
)
def test_what_is_no_list_is_named(content):
    with pytest.raises(ValueError, match=r"^seen\.file is no list of training images"):
        SeenImages.from_bytes(content, "seen.file")


def test_it_stands_beside_the_card_and_changes_no_digest(tmp_path):
    model = checkpoint.load("deeplab_v2_resnet18", untrained=True)
    seen = SeenImages.of(look_at([jpeg(photograph(0, (80, 60)))]))
    checkpoint.save(tmp_path / "with", model.module, model.card, seen=seen)
    checkpoint.save(tmp_path / "without", model.module, model.card)
    assert checkpoint.digest_of(tmp_path / "with") == checkpoint.digest_of(tmp_path / "without")
    assert checkpoint.seen_images(tmp_path / "without") is None
    found = checkpoint.seen_images(tmp_path / "with")
    assert found is not None and np.array_equal(found.digests, seen.digests)
    (tmp_path / "with" / SEEN_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=SEEN_FILE):
        checkpoint.seen_images(tmp_path / "with")
