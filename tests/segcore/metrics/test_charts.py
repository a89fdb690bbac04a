"""Every picture is one that can be opened, of the size that was asked for, whatever the figures are."""

import datetime
import io

import numpy as np
from PIL import Image

from segcore.metrics import charts
from segcore.metrics.evaluation import Figure
from segcore.models.published import published
from segcore.models.variants import VARIANTS

FIGURE = Figure(0.7, 0.6, 0.8)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert np.asarray(picture.convert("L")).std() > 0
    return picture


def test_pictures_can_be_opened() -> None:
    unsure = Figure(0.7, np.nan, np.nan)
    bars = {"without CRF": {"cat": (FIGURE, 9), "dog": (unsure, 1)}, "with CRF": {"dog": (unsure, 1)}}
    opened(charts.class_bars(bars, "title", ("test", {"dog": 80.0, "cow": 1.0})))
    opened(charts.trimap_curves({"a": [FIGURE] * 40, "b": [FIGURE] * 40}, "title", "mean IoU"))
    confusion = np.array([[90, 10, 0], [0, 0, 0], [0, 0, 0]])
    opened(charts.confusion_picture(confusion, ("background", "cat", "dog"), "title"))
    now = datetime.datetime.now(datetime.UTC)
    opened(charts.history({"a": [(now, FIGURE), (now + datetime.timedelta(1), FIGURE)], "b": [(now, FIGURE)]}, "title"))
    nights = [(now + datetime.timedelta(n), FIGURE) for n in range(90)]
    assert opened(charts.history({"a": nights, "b": nights[40:]}, "title")).size[0] > 600


def test_the_image_sheet_shows_every_line_and_void_in_white() -> None:
    image = np.full((50, 80, 3), 200, np.uint8)
    labels = np.full((25, 40), 255, np.uint8)
    one = opened(charts.image_sheet([("caption", image, [("truth", labels)])]))
    two = opened(charts.image_sheet([("caption", image, [("truth", labels)])] * 2))
    assert two.height == 2 * one.height
    assert one.getpixel((one.width - 100, 100)) == (255, 255, 255)
    assert Image.open(io.BytesIO(charts.image_sheet([("c", image, [])], jpeg=True))).format == "JPEG"


def test_the_papers_numbers_are_read_from_the_table_of_variants() -> None:
    found = {name: published(name) for name in VARIANTS}
    assert found["deeplab_v1_largefov"].with_crf == 67.64 and found["deeplab_v1_largefov"].split == "val"
    assert (found["pspnet101"].mean_iou, found["pspnet101"].split) == (82.6, "test")
    assert found["pspnet152"] is None
    # Whatever is printed of a variant is understood
    assert [name for name, v in VARIANTS.items() if v.published and found[name] is None] == []
