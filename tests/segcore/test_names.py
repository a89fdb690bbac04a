"""One spelling of names: hyphens are accepted, and what is unknown gets a proposal."""

import pytest

from segcore import models
from segcore.crf import dense_crf
from segcore.learning import recipes
from segcore.names import known


def test_hyphens_and_capitals_mean_the_name():
    assert known("DeepLab-v2", ["deeplab_v1", "deeplab_v2"], "model") == "deeplab_v2"
    assert dense_crf.preset("deeplab-v2-resnet101") is dense_crf.CRF_PRESETS["deeplab_v2_resnet101"]
    assert models.variant("deeplab-v1-largefov") is models.variant("deeplab_v1_largefov")
    assert recipes.recipe("fast-pspnet18") is recipes.recipe("fast_pspnet18")


def test_every_name_has_underscores_only():
    for names in (dense_crf.CRF_PRESETS, models.NAMES, recipes.RECIPES):
        assert not [name for name in names if "-" in name or name != name.lower()]


def test_the_unknown_gets_the_nearest_names_or_the_command_that_lists_them():
    with pytest.raises(ValueError, match=r"There is no model 'deplab_v1'; did you mean deeplab_v1\?"):
        known("deplab_v1", ["deeplab_v1", "pspnet14"], "model")
    with pytest.raises(ValueError, match="`segment-archive presets` lists them"):
        dense_crf.preset("zzz")


def test_a_preset_with_other_values_beside_it():
    params = dense_crf.named_params({"preset": "deeplab_v1", "iterations": 3})
    assert params["bilateral_xy_std_px"] == 50 and params["iterations"] == 3
    assert dense_crf.named_params("deeplab_v1") == dense_crf.CRF_PRESETS["deeplab_v1"]
    assert dense_crf.named_params(None) is None
