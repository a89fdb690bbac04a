"""Colours for people: each of VOC's classes is told from the others and from black."""

import numpy as np

from segcore.images.pictures import clear_palette, overlay
from segcore.voc import CLASSES


def test_classes_of_voc_have_colours_of_their_own():
    colours = clear_palette()[: len(CLASSES)].astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=-1)
    np.fill_diagonal(apart, 999)
    assert apart.min() >= 50
    assert clear_palette()[255].tolist() == [224, 224, 192]


def test_a_cat_is_seen_on_a_dark_photograph():
    dark = np.full((2, 2, 3), 30, np.uint8)
    shown = overlay(dark, np.array([[0, CLASSES.index("cat")], [0, 0]], np.uint8))
    assert np.array_equal(shown[0, 0], dark[0, 0])
    assert int(shown[0, 1].max()) > 100
