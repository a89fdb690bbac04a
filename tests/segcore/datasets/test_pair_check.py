import io
import zlib
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from segcore.datasets.label_set import VOC_LABELS, read_classes, with_void
from segcore.datasets.pair_check import ADVICE, Kind, Level, check_pair
from segcore.images import decoding, turns
from segcore.images.masks import decode_mask, encode_mask
from segcore.voc import palette
from tests.conftest import photograph
from tests.sbd_files import annotation

LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:20, 8:30] = 12
LABELS[4, 8:30] = 255


def jpeg(size=(40, 30), orientation=None) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    photograph(1, size).save(buffer, format="JPEG", exif=exif)
    return buffer.getvalue()


def png(pixels: np.ndarray | Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def kinds(check) -> list[Kind]:
    return [finding.kind for finding in check.findings]


def test_a_good_pair_is_left_as_it_is():
    mask = encode_mask(LABELS)
    check = check_pair(jpeg(), mask, VOC_LABELS)
    assert kinds(check) == [] and check.usable
    assert check.mask is mask  # The very bytes
    assert (check.width, check.height) == (40, 30)
    assert {k: n for k, n in enumerate(check.label_pixels) if n} == {0: 848, 12: 330, 255: 22}
    assert check.fingerprint is not None


def test_a_palette_is_never_looked_at():
    image = Image.fromarray(LABELS)
    image.putpalette(bytes(range(256)) * 3)  # Some tool's own colours
    mask = png(image)
    check = check_pair(jpeg(), mask, VOC_LABELS)
    assert check.usable and check.mask == mask and check.label_pixels[12] == 330


def test_masks_of_few_bits_a_pixel():
    image = Image.fromarray(np.minimum(LABELS, 3))
    image.putpalette(palette(4).tobytes())
    mask = png(image, bits=2)
    check = check_pair(jpeg(), mask, VOC_LABELS)
    assert check.usable and check.mask == mask and check.label_pixels[3] == 352
    np.testing.assert_array_equal(decode_mask(mask), np.minimum(LABELS, 3))


def test_sizes_that_differ():
    check = check_pair(jpeg((41, 30)), encode_mask(LABELS), VOC_LABELS)
    assert kinds(check) == [Kind.SIZE_MISMATCH] and not check.usable
    assert check.findings[0].detail == "image 41 x 30, mask 40 x 30 px"


def coded(format_: str, orientation: int, image: Image.Image | None = None) -> bytes:
    """An image of 40 x 30 px as coded, which its file turns by an orientation."""
    image, buffer = image or photograph(1, (40, 30)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format_ == "HEIF":  # Pillow's own way leaves the turn to EXIF, which no reader of HEIC honours
        written = pillow_heif.from_pillow(image)
        written.info["exif"] = exif.tobytes()
        written.save(buffer, quality=90)
    else:
        image.save(buffer, format_, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "AVIF", "HEIF", "WEBP", "PNG", "TIFF"])
def test_a_mask_pairs_the_same_way_whatever_turns_its_image(format_, orientation):
    image = coded(format_, orientation)
    assert decoding.orientation(image) == orientation
    as_coded, as_shown = LABELS, turns.upright(LABELS, orientation)
    assert decoding.decode(image).image.shape[:2] == as_shown.shape
    checks = [check_pair(image, encode_mask(labels), VOC_LABELS) for labels in (as_coded, as_shown)]
    if orientation == 1:
        assert kinds(checks[0]) == []
    elif orientation < 5:  # Both fit; nothing tells which of them the mask is
        assert [kinds(check) for check in checks] == [[Kind.EXIF_UNCERTAIN]] * 2
    else:
        assert [kinds(check) for check in checks] == [[Kind.EXIF_ROTATED], []]
        np.testing.assert_array_equal(decode_mask(checks[0].mask), as_shown)
        np.testing.assert_array_equal(decode_mask(checks[1].mask), as_shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["AVIF", "HEIF"])
def test_the_boxes_of_a_container_turn_as_the_decoder_does(format_, orientation):
    corner = np.zeros((30, 40, 3), np.uint8)
    corner[:10, :10] = 255
    data = coded(format_, orientation, Image.fromarray(corner))
    shown = decoding.decode(data).image[..., 0] > 128
    expected = turns.upright(corner[..., 0], decoding.orientation(data)) > 128
    assert (shown == expected).mean() > 0.98
    for kind in (b"ipma", b"ipco", b"pitm"):  # Boxes that are not there, and some that are cut
        assert turns.of_boxes(data.replace(kind, b"none")) == 1
    for end in range(0, len(data), 7):
        assert turns.of_boxes(data[:end]) in (1, orientation)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_exif_does_not_turn_is_turned(orientation):
    lying = jpeg((40, 30), orientation)
    check = check_pair(lying, encode_mask(LABELS), VOC_LABELS)
    assert kinds(check) == [Kind.EXIF_ROTATED] and check.usable
    assert (check.width, check.height) == (30, 40)
    # What Pillow does to the image happened to the mask
    turned = Image.fromarray(LABELS)
    turned.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(decode_mask(check.mask), np.asarray(ImageOps.exif_transpose(turned)))


def test_a_mask_of_the_upright_image_stays():
    mask = encode_mask(np.ascontiguousarray(LABELS.T))
    check = check_pair(jpeg((40, 30), 6), mask, VOC_LABELS)
    assert kinds(check) == [] and check.mask == mask


def test_where_sizes_cannot_tell_a_person_must_look():
    assert kinds(check_pair(jpeg((40, 30), 3), encode_mask(LABELS), VOC_LABELS)) == [Kind.EXIF_UNCERTAIN]
    square = encode_mask(np.ascontiguousarray(LABELS[:, :30]))
    assert kinds(check_pair(jpeg((30, 30), 6), square, VOC_LABELS)) == [Kind.EXIF_UNCERTAIN]
    assert kinds(check_pair(jpeg((40, 30), 1), encode_mask(LABELS), VOC_LABELS)) == []


def test_coloured_masks_become_labels_where_every_colour_is_a_class():
    check = check_pair(jpeg(), png(palette()[LABELS]), VOC_LABELS)
    assert kinds(check) == [Kind.RGB_MASK] and check.usable
    np.testing.assert_array_equal(decode_mask(check.mask), LABELS)

    own = read_classes("background:0,0,0::\ncat:250,50,83::\n", "labelmap.txt")
    rgb = np.zeros((30, 40, 4), np.uint8)
    rgb[..., 3] = 255
    rgb[3:9, 3:9, :3] = (250, 50, 83)
    check = check_pair(jpeg(), png(rgb), own)
    assert kinds(check) == [Kind.RGB_MASK] and check.label_pixels[1] == 36

    rgb[3, 3, :3] = (125, 25, 41)  # A blended edge
    check = check_pair(jpeg(), png(rgb), own)
    assert kinds(check) == [Kind.UNKNOWN_COLOURS] and not check.usable
    assert "(125, 25, 41)" in check.findings[0].detail and "labelmap.txt" in check.findings[0].detail


def test_grey_masks_are_labels_or_a_mistake():
    own = read_classes("background\ncat\ndog\n")
    grey = np.minimum(LABELS, 2)
    check = check_pair(jpeg(), png(grey), own)
    assert kinds(check) == [Kind.GREY_MASK] and check.usable
    np.testing.assert_array_equal(decode_mask(check.mask), grey)
    with Image.open(io.BytesIO(check.mask)) as stored:
        assert stored.mode == "P"
    # The same in three channels, in 16 bits and in one
    assert kinds(check_pair(jpeg(), png(np.repeat(grey[..., None], 3, 2)), own)) == [Kind.GREY_MASK]
    check = check_pair(jpeg(), png(grey.astype(np.uint16)), own)
    assert kinds(check) == [Kind.GREY_MASK] and check.label_pixels[2] == (grey == 2).sum()
    assert kinds(check_pair(jpeg(), png(Image.fromarray(grey > 0)), own)) == [Kind.GREY_MASK]
    # Black and white: the object would count as void
    white = np.where(LABELS > 0, 255, 0).astype(np.uint8)
    check = check_pair(jpeg(), png(white), own)
    assert Kind.GREY_VOID in kinds(check) and not check.usable
    # Shades instead of labels
    check = check_pair(jpeg(), png(grey * 100), own)
    assert Kind.OUT_OF_RANGE in kinds(check) and "200; classes.txt names 0 to 2" in check.findings[1].detail
    too_deep = check_pair(jpeg(), png(grey.astype(np.uint16) * 1000), own)
    assert kinds(too_deep) == [Kind.MASK_UNREADABLE] and "values from 0 to 2000" in too_deep.findings[0].detail


def test_labels_that_no_class_has():
    check = check_pair(jpeg(), encode_mask(np.where(LABELS == 12, 21, LABELS).astype(np.uint8)), VOC_LABELS)
    assert kinds(check) == [Kind.OUT_OF_RANGE] and not check.usable
    assert check.findings[0].detail == "21; PASCAL VOC names 0 to 20"


def test_void_and_nothing():
    void = np.full_like(LABELS, 255)
    assert kinds(check_pair(jpeg(), encode_mask(void), VOC_LABELS)) == [Kind.ONLY_VOID]
    void[:, :10] = 3
    check = check_pair(jpeg(), encode_mask(void), VOC_LABELS)
    assert kinds(check) == [Kind.MOSTLY_VOID] and check.findings[0].detail == "75% void" and check.usable
    assert kinds(check_pair(jpeg(), encode_mask(np.zeros_like(LABELS)), VOC_LABELS)) == [Kind.EMPTY_MASK]


def test_what_cannot_be_read_says_why():
    good = encode_mask(LABELS)
    buffer = io.BytesIO()
    Image.fromarray(LABELS).save(buffer, format="JPEG")
    cases = {b"": "empty", buffer.getvalue(): "JPEG, which blurs", b"text": "no image format", good[:60]: ""}
    for mask, reason in cases.items():
        check = check_pair(jpeg(), mask, VOC_LABELS)
        assert kinds(check) == [Kind.MASK_UNREADABLE] and not check.usable
        assert reason in check.findings[0].detail and "0x" not in check.findings[0].detail
    for image, reason in {b"": "empty", b"text": "not_an_image", jpeg()[:400]: "truncated"}.items():
        check = check_pair(image, good, VOC_LABELS)
        assert kinds(check) == [Kind.IMAGE_UNREADABLE] and not check.usable
        assert reason in check.findings[0].detail


def test_a_mask_without_its_image_is_still_counted():
    check = check_pair(None, encode_mask(LABELS), VOC_LABELS)
    assert check.label_pixels[12] == 330 and (check.width, check.height) == (40, 30)
    assert check_pair(jpeg(), None, VOC_LABELS).mask is None


def test_annotations_of_sbd():
    labels = np.where(LABELS == 255, 0, LABELS).astype(np.uint8)
    check = check_pair(jpeg(), annotation(labels), VOC_LABELS, sbd_mask=True)
    assert kinds(check) == [] and check.usable
    np.testing.assert_array_equal(decode_mask(check.mask), labels)
    check = check_pair(jpeg(), b"no file of MATLAB", VOC_LABELS, sbd_mask=True)
    assert kinds(check) == [Kind.MASK_UNREADABLE] and "MATLAB" in check.findings[0].detail


def test_every_kind_has_advice():
    assert set(ADVICE) == set(Kind)
    assert all(advice.remedy for advice in ADVICE.values())
    assert {advice.level for advice in ADVICE.values()} == set(Level)


WHITE = np.where(LABELS > 0, 255, 0).astype(np.uint8)


def grey_palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    return image


@pytest.mark.parametrize(
    "mask",
    [
        png(WHITE),
        png(np.repeat(WHITE[..., None], 3, 2)),
        png(np.dstack([WHITE, WHITE, WHITE, np.full_like(WHITE, 255)])),
        png(np.dstack([WHITE, np.full_like(WHITE, 255)])),
        png(grey_palette(WHITE)),
        png(WHITE.astype(np.uint16)),
        png(WHITE.astype(np.uint16) * 257),
    ],
    ids=["grey", "RGB", "RGBA", "LA", "palette", "16 bit", "16 bit, 65535"],
)
def test_black_and_white_is_said_in_every_mode(mask):
    own = read_classes("background\nscratch\n")
    check = check_pair(jpeg(), mask, own)
    assert Kind.GREY_VOID in kinds(check) and not check.usable
    assert "write the object as its label" in ADVICE[Kind.GREY_VOID].remedy
    # With a class that is white, they are labels
    named = read_classes("background:0,0,0::\nscratch:255,255,255::\n", "labelmap.txt")
    check = check_pair(jpeg(), mask, named)
    assert kinds(check) == [Kind.RGB_MASK] and check.usable
    np.testing.assert_array_equal(decode_mask(check.mask), WHITE // 255)


@pytest.mark.parametrize(
    "mask",
    [
        png(np.dstack([np.zeros_like(WHITE)] * 3 + [WHITE])),
        png(np.dstack([np.full_like(WHITE, 255)] * 3 + [WHITE])),
        png(np.dstack([np.zeros_like(WHITE), WHITE // 2])),
    ],
    ids=["black", "white", "LA"],
)
def test_masks_in_the_alpha_channel_are_said(mask):
    check = check_pair(jpeg(), mask, read_classes("background\nscratch\n"))
    assert kinds(check)[0] is Kind.ALPHA_MASK and not check.usable


def test_one_bit_is_label_1_and_said():
    check = check_pair(jpeg(), png(Image.fromarray(WHITE > 0)), read_classes("background\nscratch\n"))
    assert check.findings[0].detail == "mode 1, white is label 1" and check.label_pixels[1] == 352 and check.usable


def test_void_with_its_colour_is_no_mistake():
    only_void = encode_mask(WHITE)  # VOC's palette, in which 255 has the colour of void
    assert kinds(check_pair(jpeg(), only_void, VOC_LABELS)) == [Kind.EMPTY_MASK]
    red = Image.fromarray(WHITE)
    red.putpalette([0, 0, 0] * 255 + [255, 0, 0])
    assert Kind.GREY_VOID in kinds(check_pair(jpeg(), png(red), VOC_LABELS))


def test_sixteen_bits_a_channel_lose_labels():
    buffer = io.BytesIO()
    raw = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in np.minimum(LABELS, 2))
    chunks = [(b"IHDR", (40).to_bytes(4) + (30).to_bytes(4) + b"\x10\2\0\0\0"), (b"IDAT", zlib.compress(raw))]
    buffer.write(b"\x89PNG\r\n\x1a\n")
    for name, data in [*chunks, (b"IEND", b"")]:
        buffer.write(len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4))
    check = check_pair(jpeg(), buffer.getvalue(), read_classes("background\ncat\ndog\n"))
    assert kinds(check) == [Kind.MASK_UNREADABLE] and "16 bits" in check.findings[0].detail


def test_palettes_with_the_colours_of_other_labels():
    used = np.where(LABELS == 255, 2, np.where(LABELS == 12, 1, 0)).astype(np.uint8)
    own = read_classes("background\ncat\ndog\n")
    swapped = Image.fromarray(used)
    swapped.putpalette([0, 128, 0, 128, 0, 0, 0, 0, 0])
    check = check_pair(jpeg(), png(swapped), own)
    assert kinds(check) == [Kind.PALETTE_PERMUTED] and check.usable
    assert check.findings[0].detail == "0 background has that of 2 dog, 2 dog has that of 0 background"
    assert "--by-colour" in ADVICE[Kind.PALETTE_PERMUTED].remedy
    check = check_pair(jpeg(), png(swapped), replace(own, by_colour=True))
    assert kinds(check) == [Kind.RGB_MASK] and check.label_pixels[0] == 22 and check.label_pixels[1] == 330
    # Black beside a colour of no class, but not at 0
    turned = Image.fromarray(used)
    turned.putpalette([250, 250, 250, 0, 0, 0, 9, 9, 9])
    assert kinds(check_pair(jpeg(), png(turned), own)) == [Kind.PALETTE_PERMUTED]
    # The numbers and their own colours, and colours that mean nothing
    for colours in ([0, 0, 0, 128, 0, 0, 0, 128, 0], [0, 0, 0, 1, 2, 3, 4, 5, 6]):
        used_image = Image.fromarray(used)
        used_image.putpalette(colours)
        assert kinds(check_pair(jpeg(), png(used_image), own)) == []


def test_numbers_that_mean_void():
    values = np.where(LABELS == 255, 11, np.where(LABELS == 12, 1, 0)).astype(np.uint8)
    own = with_void(read_classes("sky\ncar\n"), "11")
    check = check_pair(jpeg(), encode_mask(values), own)
    assert check.usable and check.label_pixels[255] == 22 and check.label_pixels[1] == 330
    assert (decode_mask(check.mask) == 255).sum() == 22
