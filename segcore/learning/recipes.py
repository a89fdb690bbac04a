"""Recipes: everything that decides a training but the data, as named values beside the papers' tables.

Plain values without torch. What they mean is in `losses.py`, `schedules.py`, `augment.py` and `training.py`.
A variant is `dataclasses.replace(DEEPLAB_V2_RESNET101, learning_rate=1e-4)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from segcore import models
from segcore.learning.augment import AugmentParams
from segcore.learning.schedules import LayerRule, Schedule
from segcore.names import known


@dataclass(frozen=True)
class LossParams:
    """What a training minimises."""

    label_resolution: Literal["eighth", "full"] = "eighth"
    """eighth: every eighth label against the scores as they are (DeepLab; PSPNet's Caffe code). full: all labels
    against the scores after bilinear upsampling (hszhao/semseg)."""

    auxiliary_weight: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Weight of the loss of the auxiliary head; 0.4 in PSPNet (section 4)."""

    scales: tuple[Annotated[float, Interval(gt=0.0, lt=1.0)], ...] = ()
    """Scales beside 1 of DeepLab v2's multi-scale training, such as 0.75 and 0.5; with them there is a loss for each
    scale and one for the fused map, all of weight 1."""

    class_power: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """A class weighs (1 / its share of the pixels) to this power; 0 weighs all alike."""

    teacher_share: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Share of the target that is a teacher's probabilities where there is a label too, unless the teacher's file has
    a share for the image; 0 learns without a teacher."""


@dataclass(frozen=True)
class Phase:
    """One part of a training, with views of its own."""

    until: Annotated[float, Interval(gt=0.0, le=1.0)]
    """Share of the steps at which it ends."""

    crop_px: Annotated[int, Interval(ge=9, le=4097)]
    """Side of the crops in px, 8k + 1."""

    scales: tuple[float, ...]
    """As in `AugmentParams`."""

    cut_mix: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Share of steps in which a rectangle of each view comes from another one (CutMix, Yun et al. 2019)."""

    copy_paste: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Share of the other steps in which each view gets the objects of another (copy-paste, Ghiasi et al. 2021)."""


_POLY = Schedule("poly", power=0.9)
_CROP_AND_MIRROR = AugmentParams()
_MEAN_OVER_EIGHTHS = LossParams()


@dataclass(frozen=True)
class TrainRecipe:
    """One way to train one model."""

    model: str
    """Name in `segcore.models.NAMES`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the model, such as {"frozen_batch_norm": False}."""

    initial: str = ""
    """What the paper starts from, in words; which file that is, the job says. Empty: from scratch."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Images of a step, of all workers and all accumulated parts together."""

    iterations: Annotated[int, Ge(1)] = 20_000
    """Steps of the optimiser."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum as torch has it: the momentum holds gradients, not steps, so a change of the learning rate acts
    at once, where Caffe's acts over some ten steps."""

    learning_rate: Annotated[float, Gt(0.0)] = 0.01
    """Base rate, for a layer at x1 and a schedule at 1."""

    schedule: Schedule = _POLY
    """How the rates fall."""

    rules: tuple[LayerRule, ...] = ()
    """Which layers have which share of the rate; the first that fits counts, the rest train at x1."""

    momentum: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.9
    """Of SGD; the first beta of AdamW."""

    second_momentum: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.999
    """The second beta of AdamW."""

    weight_decay: Annotated[float, Ge(0.0)] = 5e-4
    """Of weights."""

    decay_biases: bool = False
    """Whether biases, and scales and shifts of batch normalisation, decay too (hszhao/semseg)."""

    loss: LossParams = _MEAN_OVER_EIGHTHS
    """What is minimised."""

    augmentation: AugmentParams = _CROP_AND_MIRROR
    """Random views of the images."""

    phases: tuple[Phase, ...] = ()
    """Parts of the training whose crops and scales replace those of `augmentation`; the last ends at 1."""

    draw_power: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Images are drawn with (1 / share of images of their rarest class) to this power; 0: each once an epoch."""

    max_epochs: Annotated[float, Ge(0.0)] = 0.0
    """A dataset so small that `iterations` would show each image more often than this gets fewer steps, but at least
    `MIN_ITERATIONS`; 0 for no bound."""

    sync_batch_norm: bool = False
    """Batch statistics over all workers (CUDA); on CPUs every worker normalises its own part."""

    clip_norm: Annotated[float, Ge(0.0)] = 0.0
    """Bound on the norm of all gradients together; 0 for none."""

    ema_decay: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the moving average of the weights, which then is the result; 0 for none."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward pass; weights, losses and the optimiser stay in float32."""

    seed: Annotated[int, Ge(0)] = 0
    """Draws initial weights, order of the images, views and dropout."""

    def __post_init__(self) -> None:
        models.variant(self.model)
        if self.phases and [p.until for p in self.phases] != sorted({p.until for p in self.phases} | {1.0}):
            raise ValueError("Phases must end one after the other, the last one at 1.")
        if self.loss.teacher_share and (self.loss.label_resolution == "full" or self.loss.scales):
            raise ValueError("A teacher's probabilities lie at every eighth pixel: no full labels, no other scales.")
        for phase in self.phases:
            self._views(phase)  # Refuses crops that do not fit the grid

    @property
    def crop_px(self) -> int:
        """Side of the largest crops."""
        return max([phase.crop_px for phase in self.phases], default=self.augmentation.crop_px)

    def cost(self, start: int, end: int) -> float:
        """Work of the steps from start up to end, in steps as the first ones are: by the areas of the crops."""
        if not self.phases:
            return float(end - start)
        ends = [math.ceil(phase.until * self.iterations) for phase in self.phases]
        steps = [max(0, min(end, last) - max(start, first)) for first, last in zip([0, *ends], ends, strict=False)]
        areas = [(phase.crop_px / self.phases[0].crop_px) ** 2 for phase in self.phases]
        return sum(count * area for count, area in zip(steps, areas, strict=True))

    def phase(self, step: int) -> Phase | None:
        """The part of the training that a step belongs to; None where there are no parts."""
        return next((phase for phase in self.phases if step < phase.until * self.iterations), None)

    def views(self, step: int) -> AugmentParams:
        """Views of the images of a step."""
        phase = self.phase(step)
        return self.augmentation if phase is None else self._views(phase)

    def _views(self, phase: Phase) -> AugmentParams:
        return dataclasses.replace(self.augmentation, crop_px=phase.crop_px, scales=phase.scales)


def recipe(name: str) -> TrainRecipe:
    """The recipe of a name; a ValueError names the nearest ones for a name that is unknown."""
    return RECIPES[known(name, RECIPES, "recipe", "segment-archive recipes")]


def with_iterations(recipe: TrainRecipe, iterations: int) -> TrainRecipe:
    """The same training in another number of steps: stairs and warm-up shrink or grow with it."""
    k = iterations / recipe.iterations
    schedule = dataclasses.replace(
        recipe.schedule, every=max(1, round(recipe.schedule.every * k)), warmup=round(recipe.schedule.warmup * k)
    )
    return dataclasses.replace(recipe, iterations=iterations, schedule=schedule)


def with_batch_size(recipe: TrainRecipe, batch_size: int) -> TrainRecipe:
    """The same training with another global batch: the linear rule (Goyal et al. 2017, section 2.1).

    Learning rate times k, iterations, stairs and warm-up divided by k, where k = batch_size / recipe.batch_size: as
    many images are seen, with as much decay in between. AdamW's rate goes with the root of k.
    """
    if batch_size == recipe.batch_size:
        return recipe
    k = batch_size / recipe.batch_size
    rate = recipe.learning_rate * (k if recipe.optimiser == "sgd" else k**0.5)
    shorter = with_iterations(recipe, max(1, round(recipe.iterations / k)))
    return dataclasses.replace(shorter, batch_size=batch_size, learning_rate=rate)


MIN_ITERATIONS = 300
"""Fewest steps that `max_epochs` leaves."""


def for_images(recipe: TrainRecipe, images: int) -> TrainRecipe:
    """The recipe for a dataset of so many images: fewer steps where it would see them more than `max_epochs` times."""
    if not recipe.max_epochs:
        return recipe
    most = max(MIN_ITERATIONS, round(recipe.max_epochs * images / recipe.batch_size))
    return recipe if recipe.iterations <= most else with_iterations(recipe, most)


# DeepLab v1 (section 4.1 and the released solver.prototxt). Classifier x10, biases x2 and without decay.
_CLASSIFIER_X10 = (LayerRule(r"fc8$", 10, 20), LayerRule("", 1, 2))

DEEPLAB_V1_LARGEFOV = TrainRecipe(
    model="deeplab_v1_largefov",
    initial="VGG-16 from ImageNet",
    batch_size=30,
    iterations=6000,
    learning_rate=0.001,
    schedule=Schedule("step", every=2000, factor=0.1),
    rules=_CLASSIFIER_X10,
    augmentation=AugmentParams(crop_px=321),
)

# 2x2 pooling: one more pixel of mean at the top and left makes the paper's input of 306 px.
DEEPLAB_V1 = dataclasses.replace(
    DEEPLAB_V1_LARGEFOV, model="deeplab_v1", batch_size=20, augmentation=AugmentParams(crop_px=305)
)
DEEPLAB_V1_4X4 = dataclasses.replace(DEEPLAB_V1, model="deeplab_v1_4x4")
DEEPLAB_V1_7X7 = dataclasses.replace(DEEPLAB_V1, model="deeplab_v1_7x7")

# Multi-scale features: a second stage that trains the new branches alone (released train.prototxt: all at x1 and x2).
_BRANCHES_ONLY = (LayerRule(r"^branches\.", 1, 2), LayerRule("", 0, 0))
DEEPLAB_V1_MSC_LARGEFOV = dataclasses.replace(
    DEEPLAB_V1_LARGEFOV,
    model="deeplab_v1_msc_largefov",
    initial="a trained deeplab_v1_largefov",
    batch_size=20,
    rules=_BRANCHES_ONLY,
)
DEEPLAB_V1_MSC = dataclasses.replace(
    DEEPLAB_V1_MSC_LARGEFOV, model="deeplab_v1_msc", initial="a trained DeepLab with 3x3 pooling"
)

# DeepLab v2 (section 4.1.1 and the released solvers): poly, batch 10, 20,000 iterations.
DEEPLAB_V2_VGG16_ASPP_L = dataclasses.replace(
    DEEPLAB_V1_LARGEFOV,
    model="deeplab_v2_vgg16_aspp_l",
    batch_size=10,
    iterations=20_000,
    schedule=_POLY,
)
DEEPLAB_V2_VGG16_ASPP_S = dataclasses.replace(DEEPLAB_V2_VGG16_ASPP_L, model="deeplab_v2_vgg16_aspp_s")
DEEPLAB_V2_VGG16_LARGEFOV = dataclasses.replace(DEEPLAB_V2_VGG16_ASPP_L, model="deeplab_v2_vgg16_largefov")

# Three scales and four losses, random scale, frozen batch normalisation; the head x10, its biases x20.
DEEPLAB_V2_RESNET101 = TrainRecipe(
    model="deeplab_v2_resnet101",
    initial="ResNet-101 from ImageNet and COCO",
    batch_size=10,
    iterations=20_000,
    learning_rate=2.5e-4,
    schedule=_POLY,
    rules=(LayerRule(r"^head\.", 10, 20), LayerRule("", 1, 2)),
    loss=LossParams(scales=(0.75, 0.5)),
    augmentation=AugmentParams(crop_px=321, scales=(0.5, 0.75, 1.0, 1.25, 1.5)),
)
DEEPLAB_V2_RESNET101_LARGEFOV = dataclasses.replace(DEEPLAB_V2_RESNET101, model="deeplab_v2_resnet101_largefov")
DEEPLAB_V2_RESNET18 = dataclasses.replace(
    DEEPLAB_V2_RESNET101, model="deeplab_v2_resnet18", initial="ResNet-18 from ImageNet"
)

# PSPNet (section 5.1, hszhao/semseg): everything decays, new layers x10 (Caffe's classifier bias at x20 is not taken
# over), synchronised batch normalisation, auxiliary loss, labels at full size.
PSPNET101 = TrainRecipe(
    model="pspnet101",
    initial="ResNet-101 from ImageNet",
    batch_size=16,
    iterations=30_000,
    learning_rate=0.01,
    schedule=_POLY,
    rules=(LayerRule(r"^(pyramid|head|auxiliary)\.", 10, 10),),
    weight_decay=1e-4,
    decay_biases=True,
    loss=LossParams(label_resolution="full", auxiliary_weight=0.4),
    augmentation=AugmentParams(crop_px=473, scales=(0.5, 2.0), rotation_degrees=10.0, blur_probability=0.5),
    sync_batch_norm=True,
)
PSPNET50 = dataclasses.replace(PSPNET101, model="pspnet50", initial="ResNet-50 from ImageNet")
PSPNET152 = dataclasses.replace(PSPNET101, model="pspnet152", initial="ResNet-152 from ImageNet")
PSPNET269 = dataclasses.replace(PSPNET101, model="pspnet269", initial="ResNet-269 from ImageNet")

# Ours: the compact models from scratch, with what has come into use since the papers.
_FAST = TrainRecipe(
    model="pspnet18",
    batch_size=16,
    iterations=30_000,
    optimiser="adamw",
    learning_rate=1e-3,
    schedule=Schedule("cosine", warmup=500),
    weight_decay=0.05,
    loss=LossParams(label_resolution="eighth", auxiliary_weight=0.4),
    augmentation=AugmentParams(
        crop_px=257,
        scales=(0.5, 2.0),
        rotation_degrees=10.0,
        blur_probability=0.1,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue_degrees=10.0,
    ),
    sync_batch_norm=True,
    clip_norm=1.0,
    ema_decay=0.999,
    precision="bf16",
    max_epochs=45.0,
)
FAST_PSPNET18 = _FAST
FAST_PSPNET14 = dataclasses.replace(_FAST, model="pspnet14", loss=LossParams())
FAST_DEEPLAB_V2_RESNET18 = dataclasses.replace(
    _FAST, model="deeplab_v2_resnet18", options={"frozen_batch_norm": False}, loss=LossParams()
)

# Ours, from ImageNet weights within an hour of one or two cores. New layers learn faster than the backbone; crops grow
# along, since small ones are cheap while much is still to be learnt.
_FROM_IMAGENET = TrainRecipe(
    model="pspnet_lite2",
    initial="EfficientNet-Lite from ImageNet",
    batch_size=16,
    iterations=2200,
    optimiser="adamw",
    learning_rate=1e-3,
    schedule=Schedule("cosine", warmup=88),
    rules=(LayerRule(r"^trunk\.", 0.4, 0.4),),
    second_momentum=0.99,
    weight_decay=0.02,
    loss=LossParams(auxiliary_weight=0.4, class_power=0.2),
    augmentation=AugmentParams(
        rotation_degrees=8.0,
        blur_probability=0.08,
        brightness=0.3,
        contrast=0.3,
        saturation=0.35,
        hue_degrees=8.0,
        grey_probability=0.08,
        fill_rgb=(127, 127, 127),
    ),
    phases=(
        Phase(0.45, 193, (0.55, 1.5), cut_mix=0.4, copy_paste=0.2),
        Phase(0.85, 225, (0.65, 1.8), cut_mix=0.4, copy_paste=0.2),
        Phase(0.93, 257, (0.7, 1.9), cut_mix=0.4, copy_paste=0.2),
        Phase(1.0, 257, (0.7, 1.9)),
    ),
    draw_power=0.5,
    clip_norm=5.0,
    ema_decay=0.998,
    precision="bf16",
    max_epochs=60.0,
)
PSPNET_LITE2 = _FROM_IMAGENET
PSPNET_LITE0 = dataclasses.replace(_FROM_IMAGENET, model="pspnet_lite0")
_ASPP_LOSS = dataclasses.replace(_FROM_IMAGENET.loss, auxiliary_weight=0.0)
DEEPLAB_V2_LITE2 = dataclasses.replace(_FROM_IMAGENET, model="deeplab_v2_lite2", loss=_ASPP_LOSS)
DEEPLAB_V2_LITE0 = dataclasses.replace(_FROM_IMAGENET, model="deeplab_v2_lite0", loss=_ASPP_LOSS)
# The bundled model: the same, with a teacher
DEFAULT_MODEL = dataclasses.replace(
    PSPNET_LITE2, loss=dataclasses.replace(_FROM_IMAGENET.loss, teacher_share=0.3), max_epochs=0.0
)
# And its second training, on crops as large as whole photographs: the pyramid pools what it will pool later
DEFAULT_MODEL_LARGE = dataclasses.replace(
    DEFAULT_MODEL,
    initial="the model of default_model",
    iterations=1300,
    learning_rate=6e-4,
    schedule=Schedule("cosine", warmup=60),
    phases=(
        Phase(0.6, 257, (0.6, 1.8), cut_mix=0.25, copy_paste=0.15),
        Phase(1.0, 321, (0.7, 1.7)),
    ),
)

RECIPES: dict[str, TrainRecipe] = {
    "deeplab_v1": DEEPLAB_V1,
    "deeplab_v1_4x4": DEEPLAB_V1_4X4,
    "deeplab_v1_7x7": DEEPLAB_V1_7X7,
    "deeplab_v1_largefov": DEEPLAB_V1_LARGEFOV,
    "deeplab_v1_msc": DEEPLAB_V1_MSC,
    "deeplab_v1_msc_largefov": DEEPLAB_V1_MSC_LARGEFOV,
    "deeplab_v2_vgg16_largefov": DEEPLAB_V2_VGG16_LARGEFOV,
    "deeplab_v2_vgg16_aspp_s": DEEPLAB_V2_VGG16_ASPP_S,
    "deeplab_v2_vgg16_aspp_l": DEEPLAB_V2_VGG16_ASPP_L,
    "deeplab_v2_resnet101": DEEPLAB_V2_RESNET101,
    "deeplab_v2_resnet101_largefov": DEEPLAB_V2_RESNET101_LARGEFOV,
    "deeplab_v2_resnet18": DEEPLAB_V2_RESNET18,
    "pspnet50": PSPNET50,
    "pspnet101": PSPNET101,
    "pspnet152": PSPNET152,
    "pspnet269": PSPNET269,
    "default_model": DEFAULT_MODEL,
    "default_model_large": DEFAULT_MODEL_LARGE,
    "pspnet_lite0": PSPNET_LITE0,
    "pspnet_lite2": PSPNET_LITE2,
    "deeplab_v2_lite0": DEEPLAB_V2_LITE0,
    "deeplab_v2_lite2": DEEPLAB_V2_LITE2,
    "fast_pspnet18": FAST_PSPNET18,
    "fast_pspnet14": FAST_PSPNET14,
    "fast_deeplab_v2_resnet18": FAST_DEEPLAB_V2_RESNET18,
}
"""Every recipe by name; those of the papers have the name of their model."""
