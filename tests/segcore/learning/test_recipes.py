"""The papers' learning rates, group by group and iteration by iteration."""

import dataclasses

import pytest
import torch

from segcore import models
from segcore.learning import recipes
from segcore.learning.recipes import RECIPES, Phase, with_batch_size, with_iterations
from segcore.learning.schedules import LayerRule, Schedule, freeze_others, parameter_groups


def rates(name: str, iteration: int) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of every parameter that the recipe trains, at an iteration."""
    recipe = RECIPES[name]
    with torch.device("meta"):
        network = models.build(recipe.model, **dict(recipe.options))
    groups = parameter_groups(network, recipe.rules, recipe.weight_decay, decay_biases=recipe.decay_biases)
    factor = recipe.schedule(iteration, recipe.iterations)
    return {
        parameter: (recipe.learning_rate * group.multiplier * factor, group.weight_decay)
        for group in groups
        for parameter in group.names
    }


def approximately(rate: float, decay: float) -> tuple:
    return (pytest.approx(rate, rel=1e-9), decay)


# v1 section 4.1 and solver.prototxt: 0.001, times 0.1 every 2,000 of 6,000; fc8 x10; biases x2 and x20, no decay
@pytest.mark.parametrize(
    ("iteration", "base"), [(0, 1e-3), (1999, 1e-3), (2000, 1e-4), (3999, 1e-4), (4000, 1e-5), (5999, 1e-5)]
)
@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v1_largefov"])
def test_deeplab_v1_falls_in_steps(name, iteration, base):
    found = rates(name, iteration)
    assert found["trunk.conv1_1.weight"] == approximately(base, 5e-4)
    assert found["trunk.conv5_3.bias"] == approximately(2 * base, 0.0)
    assert found["head.fc6.weight"] == approximately(base, 5e-4)
    assert found["head.fc8.weight"] == approximately(10 * base, 5e-4)
    assert found["head.fc8.bias"] == approximately(20 * base, 0.0)


# poly 0.9: (1 - i / 20000) ** 0.9; half of the way is 0.5358867312681466
@pytest.mark.parametrize(("iteration", "factor"), [(0, 1.0), (10_000, 0.5358867312681466), (19_999, 20_000**-0.9)])
def test_deeplab_v2_falls_by_poly(iteration, factor):
    found = rates("deeplab_v2_vgg16_aspp_l", iteration)
    assert found["trunk.conv1_1.weight"] == approximately(1e-3 * factor, 5e-4)
    assert found["trunk.conv1_1.bias"] == approximately(2e-3 * factor, 0.0)
    assert found["head.branches.3.fc7.bias"] == approximately(2e-3 * factor, 0.0)
    assert found["head.branches.3.fc8.weight"] == approximately(1e-2 * factor, 5e-4)
    assert found["head.branches.3.fc8.bias"] == approximately(2e-2 * factor, 0.0)
    found = rates("deeplab_v2_resnet101", iteration)
    assert found["trunk.res4.22.branch2b.conv.weight"] == approximately(2.5e-4 * factor, 5e-4)
    assert found["head.branches.0.weight"] == approximately(2.5e-3 * factor, 5e-4)
    assert found["head.branches.0.bias"] == approximately(5e-3 * factor, 0.0)
    assert not [name for name in found if ".bn." in name]  # Frozen: neither trained nor updated


@pytest.mark.parametrize(("iteration", "factor"), [(0, 1.0), (15_000, 0.5358867312681466)])
def test_pspnet_has_new_layers_at_ten(iteration, factor):
    found = rates("pspnet101", iteration)
    assert found["trunk.stem.conv1.conv.weight"] == approximately(1e-2 * factor, 1e-4)
    assert found["trunk.res5.2.branch2c.bn.bias"] == approximately(1e-2 * factor, 1e-4)
    for layer in ("pyramid.reductions.0.conv", "head.conv.bn", "head.classifier", "auxiliary.classifier"):
        assert found[f"{layer}.weight"] == approximately(1e-1 * factor, 1e-4)
    assert found["head.classifier.bias"] == approximately(1e-1 * factor, 1e-4)


def test_multi_scale_features_train_the_new_layers_alone():
    found = rates("deeplab_v1_msc_largefov", 0)
    assert {name.split(".")[0] for name in found} == {"branches"}
    assert found["branches.0.conv1.weight"] == approximately(1e-3, 5e-4)
    assert found["branches.4.classifier.bias"] == approximately(2e-3, 0.0)


def test_the_papers_sizes():
    """Batch, steps, crop of the fact sheet; 305 and a margin of 1 is v1's 306."""
    facts = {
        "deeplab_v1": (20, 6_000, 305),
        "deeplab_v1_largefov": (30, 6_000, 321),
        "deeplab_v2_vgg16_aspp_s": (10, 20_000, 321),
        "deeplab_v2_resnet101": (10, 20_000, 321),
        "pspnet101": (16, 30_000, 473),
    }
    for name, (batch, steps, crop) in facts.items():
        recipe = RECIPES[name]
        assert (recipe.batch_size, recipe.iterations, recipe.augmentation.crop_px) == (batch, steps, crop)
        assert recipe.momentum == 0.9
    assert RECIPES["deeplab_v2_resnet101"].loss.scales == (0.75, 0.5)
    assert RECIPES["pspnet101"].loss.auxiliary_weight == 0.4
    assert RECIPES["pspnet101"].sync_batch_norm


def test_warm_up_and_cosine():
    schedule = Schedule("cosine", warmup=4)
    assert [schedule(i, 100) for i in (0, 1)] == [pytest.approx(0.2), pytest.approx(0.4 * 0.99975328)]
    assert schedule(50, 100) == pytest.approx(0.5)


def test_a_larger_batch_sees_as_many_images():
    recipe = with_batch_size(RECIPES["deeplab_v1"], 40)  # Twice the paper's
    assert (recipe.learning_rate, recipe.iterations, recipe.schedule.every) == (0.002, 3000, 1000)
    same = with_batch_size(RECIPES["pspnet101"], 16)
    assert same is RECIPES["pspnet101"]


def test_fewer_steps_keep_the_shape_of_the_schedule():
    short = with_iterations(RECIPES["deeplab_v1_largefov"], 60)
    assert [short.schedule(i, 60) for i in (0, 19, 20, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    assert with_iterations(RECIPES["fast_pspnet18"], 600).schedule.warmup == 10


def test_what_no_group_holds_is_frozen():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1))
    groups = parameter_groups(network, [LayerRule("^0$", 0, 0)], 0.1, decay_biases=False)
    freeze_others(network, groups)
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    with pytest.raises(ValueError, match="trains nothing"):
        parameter_groups(network, [LayerRule("", 0, 0)], 0.1, decay_biases=False)


def test_unknown_names_are_told_with_their_neighbours():
    with pytest.raises(ValueError, match="did you mean deeplab_v1_largefov"):
        recipes.recipe("deeplab_v1_largefow")
    with pytest.raises(ValueError, match="There is no model"):
        dataclasses.replace(RECIPES["pspnet50"], model="pspnet5000")


def test_every_model_of_the_papers_has_a_recipe_of_its_name():
    without = set(models.NAMES) - set(RECIPES)
    # FCN is the baseline that the papers compare with; the compact models have recipes of ours
    assert not {
        name for name in without if name.startswith(("deeplab_v", "pspnet")) and not name.endswith(("14", "18"))
    }


PHASED = dataclasses.replace(
    recipes.PSPNET_LITE0, iterations=10, phases=(Phase(0.5, 33, (0.5, 1.0)), Phase(1.0, 65, (1.0, 2.0), cut_mix=0.5))
)


def test_phases_have_views_of_their_own():
    assert [PHASED.views(step).crop_px for step in range(10)] == [33] * 5 + [65] * 5
    assert PHASED.views(9).scales == (1.0, 2.0)
    assert PHASED.views(9).hue_degrees == PHASED.augmentation.hue_degrees
    assert PHASED.crop_px == 65
    # They follow another number of steps
    assert [with_iterations(PHASED, 4).views(step).crop_px for step in range(4)] == [33, 33, 65, 65]


@pytest.mark.parametrize("start, end", [(0, 10), (0, 5), (3, 8), (5, 6), (7, 7)])
def test_steps_cost_what_the_areas_of_their_crops_are(start, end):
    each = [(PHASED.views(step).crop_px / 33) ** 2 for step in range(10)]
    assert PHASED.cost(start, end) == pytest.approx(sum(each[start:end]))
    assert recipes.PSPNET101.cost(start, end) == end - start


@pytest.mark.parametrize("ends", [(0.5,), (0.6, 0.5, 1.0), (0.5, 0.5, 1.0)])
def test_phases_that_do_not_fit_are_refused(ends):
    with pytest.raises(ValueError, match="the last one at 1"):
        dataclasses.replace(PHASED, phases=tuple(Phase(end, 33, (1.0,)) for end in ends))


def test_crops_of_phases_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="41 would be"):
        dataclasses.replace(PHASED, phases=(Phase(1.0, 42, (1.0,)),))


def test_a_teacher_has_no_full_labels():
    with pytest.raises(ValueError, match="every eighth pixel"):
        dataclasses.replace(PHASED, loss=recipes.LossParams(teacher_share=0.5, label_resolution="full"))


def test_a_small_dataset_gets_fewer_steps():
    fast = RECIPES["fast_pspnet18"]
    assert recipes.for_images(fast, 10_582).iterations == pytest.approx(fast.iterations, rel=0.01)
    small = recipes.for_images(fast, 219)
    assert small.iterations == round(45 * 219 / 16)
    assert small.schedule.warmup == round(500 * small.iterations / fast.iterations)
    assert recipes.for_images(fast, 3).iterations == recipes.MIN_ITERATIONS
    paper = RECIPES["pspnet101"]
    assert recipes.for_images(paper, 219) == paper
