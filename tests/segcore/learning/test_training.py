"""One step of a training, alone and among workers; and that networks of every kind can learn at all."""

import copy
import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn

from segcore.learning import losses
from segcore.learning.recipes import RECIPES, LossParams, TrainRecipe
from segcore.learning.schedules import Schedule
from segcore.learning.training import (
    Batch,
    MovingAverage,
    NonFiniteLossError,
    Trainer,
    cut_mix,
    new_network,
    normalise,
    paste_objects,
)
from segcore.metrics import evaluation
from segcore.models.deeplab_v1 import FeatureBranch
from segcore.models.deeplab_v2 import SummedBranches
from segcore.models.layers import Classifier
from segcore.models.preprocessing import DEEPLAB
from segcore.models.pspnet import PspHead, PyramidPooling, TrainingLogits
from segcore.models.resnet import ConvBn
from segcore.models.untrained import initialise_untrained
from segcore.models.vgg import FcHead

SMALL = dataclasses.replace(RECIPES["deeplab_v2_resnet18"], iterations=10, loss=LossParams())
"""Frozen batch normalisation and no dropout: a step does not depend on how its batch is divided."""


def batch(num_images: int = 2, crop_px: int = 33, seed: int = 0, scale: float = 60.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 21, (num_images, crop_px, crop_px), generator=generator).to(torch.uint8)
    labels[:, : crop_px // 3] = 255
    labels[0, : crop_px // 2] = 255  # Images with unequal numbers of valid positions
    return Batch(scale * torch.randn(num_images, 3, crop_px, crop_px, generator=generator), labels)


def parts(whole: Batch, sizes: list[int]) -> list[Batch]:
    images, labels = whole.images.split(sizes), whole.labels.split(sizes)
    return [Batch(*part) for part in zip(images, labels, strict=True)]


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None}


def check_one_step(name: str) -> None:
    """A finite loss, scores of unit scale, and gradients in exactly the parameters that the recipe trains."""
    recipe = RECIPES[name]
    network = new_network(recipe)
    # pspnet14 looks at half the size or less; backwards through 7 x 7 holes each position takes a second
    crop_px = {"pspnet14": 121, "deeplab_v1_7x7": 25}.get(recipe.model, 41)
    photographs = batch(crop_px=crop_px, scale=60 if recipe.model.startswith("deeplab") else 1)
    with torch.no_grad():
        spread = copy.deepcopy(network).eval()(photographs.images).std().item()
    assert 0.1 < spread < 20
    trainer = Trainer(recipe, network)
    if recipe.loss.teacher_share:
        soft = torch.full((2, 21, 6, 6), 1 / 21)
        photographs = dataclasses.replace(
            photographs,
            soft=soft,
            inside=torch.ones(2, 6, 6, dtype=torch.bool),
            teacher_share=torch.full((2, 6, 6), 0.3),
        )
    before = {key: value.clone() for key, value in network.named_parameters() if value.ndim == 1}
    report = trainer.train_step([photographs])
    assert np.isfinite(report.loss)
    assert set(report.losses) == set(losses.label_targets(photographs.labels, recipe.loss))
    trained = {parameter for group in trainer.groups for parameter in group.names}
    found = gradients(trainer)
    assert set(found) == trained
    without = [parameter for parameter, gradient in found.items() if not gradient.any()]
    assert not without
    changed = {key for key, value in network.named_parameters() if key in before and not value.equal(before[key])}
    assert changed == trained & before.keys()


@pytest.mark.parametrize("name", ["deeplab_v1_largefov", "deeplab_v2_resnet18", "fast_pspnet18"])
def test_one_step(name):
    check_one_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"deeplab_v1_largefov", "deeplab_v2_resnet18"}))
def test_one_step_of_every_recipe(name):
    check_one_step(name)


def test_parts_add_up_to_the_whole_batch():
    """However a batch is cut for memory's sake, unevenly valid images included, the gradients are the same."""
    whole = batch(4)
    one, cut = (Trainer(SMALL, new_network(SMALL)) for _ in range(2))
    first, second = one.train_step([whole]), cut.train_step(parts(whole, [1, 1, 2]))
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradients(cut)[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def work(rank: int, folder: str) -> None:
    """One of two workers: a step on its half, whose loss and gradients it leaves in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    trainer = Trainer(SMALL, new_network(SMALL))
    mine = parts(batch(4), [2, 2])[rank]
    losses_seen = [trainer.train_step(parts(mine, [1, 1])).loss for _ in range(2)]
    weights = {name: p.detach() for name, p in trainer.network.named_parameters()}
    torch.save({"losses": losses_seen, "gradients": gradients(trainer), "weights": weights}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_equal_one(tmp_path):
    """Loss and gradients of the same global batch, whose halves hold different numbers of valid positions."""
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    alone = Trainer(SMALL, new_network(SMALL))
    seen = [alone.train_step([batch(4)]).loss for _ in range(2)]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["losses"] == second["losses"] == pytest.approx(seen, rel=1e-5)
    for name, gradient in gradients(alone).items():
        assert first["gradients"][name].equal(second["gradients"][name])
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    for name, weight in alone.network.named_parameters():
        torch.testing.assert_close(first["weights"][name], weight.detach(), rtol=1e-4, atol=1e-6, msg=name)


def test_going_on_is_bit_identical():
    """Optimiser, schedule, dropout and moving average: four steps at once, and two sessions of two."""
    recipe = dataclasses.replace(RECIPES["fast_pspnet18"], iterations=6, precision="fp32")
    batches = [batch(seed=step, scale=1) for step in range(4)]
    through = Trainer(recipe, new_network(recipe))
    for views in batches:
        through.train_step([views])
    first = Trainer(recipe, new_network(recipe))
    for views in batches[:2]:
        first.train_step([views])
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(1234)  # Whatever happened to the generator in between
    resumed = Trainer(recipe, new_network(dataclasses.replace(recipe, seed=5)))
    resumed.load_state_dict(state)
    for views in batches[2:]:
        resumed.train_step([views])
    assert resumed.step == through.step == 4
    for name, value in through.network.state_dict().items():
        assert value.equal(resumed.network.state_dict()[name]), name
    assert through.average is not None and resumed.average is not None
    for name, value in through.average.values.items():
        assert value.equal(resumed.average.values[name]), name


def test_the_first_steps_by_hand_and_counts_are_copied() -> None:
    values = {"weight": torch.zeros(2), "count": torch.tensor(0)}
    average = MovingAverage(values, 0.4, warmup=3)
    average.update({"weight": torch.tensor([4.0, 8.0]), "count": torch.tensor(7), "other": torch.ones(1)})
    assert values["weight"].tolist() == [3, 6]  # It keeps 1 / 4
    assert values["count"] == 7
    average.update({"weight": torch.tensor([3.0, 1.0]), "count": torch.tensor(8)})
    torch.testing.assert_close(values["weight"], torch.tensor([3.0, 3.0]))  # 2 / 5 is the decay too
    average.update({"weight": torch.tensor([8.0, 3.0]), "count": torch.tensor(9)})
    torch.testing.assert_close(values["weight"], torch.tensor([6.0, 3.0]))  # 3 / 6 would be more
    assert average.steps == 3


def test_it_forgets_its_beginning_and_keeps_a_constant() -> None:
    values = {"weight": torch.zeros(1)}
    average = MovingAverage(values, 0.9, warmup=10)
    for _ in range(100):
        average.update({"weight": torch.ones(1)})
    assert float(values["weight"]) == pytest.approx(1.0, abs=1e-4)


def test_the_moving_average_is_what_is_evaluated():
    recipe = dataclasses.replace(SMALL, ema_decay=0.5, learning_rate=1e-3)
    trainer = Trainer(recipe, new_network(recipe))
    start = trainer.network.state_dict()["head.branches.0.weight"].clone()
    trainer.train_step([batch()])
    now = trainer.network.state_dict()["head.branches.0.weight"]
    keep = 1 / 10  # Early on it follows closely: (1 + step) / (10 + step)
    expected = keep * start + (1 - keep) * now
    torch.testing.assert_close(trainer.evaluation_network().state_dict()["head.branches.0.weight"], expected)


def test_a_loss_that_is_no_number_changes_nothing():
    trainer = Trainer(SMALL, new_network(SMALL))
    before = copy.deepcopy(trainer.state_dict())
    broken = batch()
    broken.images[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 0 is nan"):
        trainer.train_step([broken])
    assert trainer.step == 0
    assert all(value.equal(before["network"][name]) for name, value in trainer.network.state_dict().items())


def test_a_teacher_is_learnt_from():
    recipe = dataclasses.replace(SMALL, loss=LossParams(teacher_share=1.0), learning_rate=1e-4)
    trainer = Trainer(recipe, new_network(recipe))
    soft = torch.zeros(2, 21, 5, 5)
    soft[:, 3] = 1.0
    taught = {"soft": soft, "inside": torch.ones(2, 5, 5, dtype=torch.bool), "teacher_share": torch.ones(2, 5, 5)}
    views = dataclasses.replace(batch(), **taught)
    reports = [trainer.train_step([views]) for _ in range(6)]
    assert reports[-1].loss < reports[0].loss
    with torch.no_grad():
        scores = trainer.network.eval()(views.images)
    expected = -scores.log_softmax(1)[:, 3].mean()
    after = trainer.train_step([views])
    assert after.loss == pytest.approx(float(expected), rel=0.5), "of the teacher's class alone"
    with pytest.raises(ValueError, match="no soft labels"):
        trainer.train_step([batch()])


def numbered(count: int, side: int = 65) -> Batch:
    """Every view's pixels, labels and teacher are its number plus 1."""

    def filled(*shape: int) -> Tensor:
        return torch.arange(1.0, count + 1).reshape(-1, *[1] * len(shape)).expand(count, *shape).clone()

    grid = (side - 1) // 8 + 1
    known = torch.ones(count, grid, grid, dtype=torch.bool)
    return Batch(
        filled(3, side, side), filled(side, side).to(torch.uint8), filled(2, grid, grid), known, filled(grid, grid)
    )


def test_a_mixed_rectangle_has_pixels_labels_and_teacher_of_one_view():
    for seed in range(20):
        views = numbered(4)
        cut_mix(views, np.random.default_rng(seed))
        at_grid = views.images[:, 0, ::8, ::8]
        assert at_grid.equal(views.soft[:, 0])
        assert at_grid.equal(views.teacher_share)
        assert at_grid.equal(losses.align_labels(views.labels).float())
        assert 0 < (views.labels[0] != 1).float().mean() < 0.7


def test_objects_go_to_the_next_view_with_their_labels():
    views = numbered(2, side=17)
    views.labels.zero_()
    views.labels[0, 3:9, 3:17] = 8
    views.labels[0, 2] = 255
    paste_objects(views)
    assert (views.images[0] == 1).all(), "the second view has no object to give"
    assert (views.images[1, :, 3:9, 3:17] == 1).all()
    assert (views.images[1] == 1).sum() == 3 * 6 * 14
    assert (views.labels[1] == 8).sum() == 6 * 14 and not (views.labels[1] == 255).any()
    # Positions lie at pixels 0, 8 and 16: the object holds those at row 8, columns 8 and 16
    expected = torch.full((2, 3, 3), 2.0)
    expected[:, 1, 1:] = 1.0
    assert views.soft[1].equal(expected)


def test_gradients_are_clipped_to_the_bound():
    recipe = dataclasses.replace(SMALL, clip_norm=0.01)
    trainer = Trainer(recipe, new_network(recipe))
    report = trainer.train_step([batch()])
    assert report.gradient_norm is not None and report.gradient_norm > 0.01
    total = torch.stack([gradient.norm() for gradient in gradients(trainer).values()]).norm()
    assert total <= 0.0101


def test_an_auxiliary_head_without_weight_is_refused():
    recipe = dataclasses.replace(RECIPES["fast_pspnet18"], loss=LossParams())
    with pytest.raises(ValueError, match="auxiliary_at"):
        Trainer(recipe, new_network(recipe))
    bare = dataclasses.replace(recipe, options={"auxiliary_at": None})
    assert Trainer(bare, new_network(bare)).step == 0


def test_initial_weights_of_the_trunk_are_taken():
    source = new_network(dataclasses.replace(SMALL, seed=3))
    tensors = dict(source.state_dict())
    network = new_network(SMALL, num_classes=5, initial=tensors)  # Another number of classes: the head stays seeded
    assert network.state_dict()["trunk.res2.0.branch2a.conv.weight"].equal(tensors["trunk.res2.0.branch2a.conv.weight"])
    assert network.state_dict()["head.branches.0.weight"].shape[0] == 5
    with pytest.raises(ValueError, match="another kind of network"):
        new_network(SMALL, initial={"fc.weight": torch.zeros(3)})


def test_normalisation_is_that_of_inference():
    pixels = np.full((1, 9, 9, 3), (123, 117, 104), np.uint8)
    values = normalise(pixels, DEEPLAB)
    assert values.shape == (1, 3, 9, 9)
    assert values[0, :, 0, 0].tolist() == pytest.approx([104 - 104.008, 117 - 116.669, 123 - 122.675], abs=1e-4)


@pytest.mark.gpu
def test_synchronised_batch_normalisation():
    """SyncBN over two processes that share a GPU: statistics of the whole batch, as one process has them."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"sync-{os.getpid()}"
    folder.mkdir()
    torch.multiprocessing.spawn(_work_synchronised, args=(str(folder),), nprocs=2)
    recipe = dataclasses.replace(RECIPES["fast_pspnet18"], precision="fp32", clip_norm=0.0)
    alone = Trainer(recipe, _without_dropout(new_network(recipe)), "cuda")
    views = batch(4, scale=1)
    alone.train_step([Batch(views.images.cuda(), views.labels.cuda())])
    state = torch.load(folder / "0.pt", weights_only=True)
    for name, value in alone.network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(state[name].cpu(), value.cpu(), rtol=1e-3, atol=1e-4, msg=name)


def _work_synchronised(rank: int, folder: str) -> None:
    # gloo: NCCL refuses two processes on one device
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    recipe = dataclasses.replace(RECIPES["fast_pspnet18"], precision="fp32", clip_norm=0.0)
    trainer = Trainer(recipe, _without_dropout(new_network(recipe)), "cuda")
    views = parts(batch(4, scale=1), [2, 2])[rank]
    trainer.train_step([Batch(views.images.cuda(), views.labels.cuda())])
    if rank == 0:
        torch.save(trainer.network.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def _without_dropout(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
    return network


class Compact(nn.Module):
    """Three convolutions with trainable batch normalisation to stride 8, then a head of the papers."""

    def __init__(self, head: nn.Module, channels: int) -> None:
        super().__init__()
        widths = (3, 32, 64, channels)
        self.trunk = nn.Sequential(*(ConvBn(a, b, 3, stride=2) for a, b in itertools.pairwise(widths)))
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for part in self.trunk:
            assert isinstance(part, ConvBn)
            features = part.relu(features)
        scores: Tensor = self.head(features)
        return scores


class Psp(nn.Module):
    """Pyramid and main head, with the auxiliary head on what goes into the pyramid."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pyramid = PyramidPooling(channels, (1, 2, 3, 6), "average", reduction=True)
        self.main = PspHead(self.pyramid.out_channels, channels // 4, num_classes)
        self.auxiliary_head = PspHead(channels, channels // 4, num_classes)

    def forward(self, features: Tensor) -> Tensor | TrainingLogits:
        scores: Tensor = self.main(self.pyramid(features))
        return TrainingLogits(scores, self.auxiliary_head(features)) if self.training else scores


class Msc(nn.Module):
    """Multi-scale features: branches beside a LargeFOV head, summed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.main = FcHead(3, 12, 256, num_classes)
        self.branches = nn.ModuleList(FeatureBranch(512, 1, num_classes) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.main(features)
        for branch in self.branches:
            scores = scores + branch(features)
        return scores


def _classifiers(channels: int, rates: tuple[int, ...]) -> SummedBranches:
    return SummedBranches([Classifier(channels, 21, 3, padding=rate, dilation=rate) for rate in rates])


HEADS = {
    "largefov": (lambda: FcHead(3, 12, 256, 21), 512),
    "4x4": (lambda: FcHead(4, 8, 128, 21), 512),
    "7x7": (lambda: FcHead(7, 4, 64, 21), 512),
    "msc": (lambda: Msc(21), 512),
    "aspp_vgg": (lambda: SummedBranches([FcHead(3, rate, 128, 21) for rate in (2, 4, 8, 12)]), 512),
    "aspp_resnet": (lambda: _classifiers(256, (6, 12, 18, 24)), 256),
    "pyramid": (lambda: Psp(256, 21), 256),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_eight_images_by_heart(name, voc):
    """Over 95 % mean IoU at stride-8 labels, trained and evaluated on the same crops of 65 px."""
    make, channels = HEADS[name]
    head = make()
    recipe = TrainRecipe(
        model="deeplab_v2_resnet18",  # A name is asked for; the network is ours
        optimiser="adamw",
        learning_rate=2e-3,
        weight_decay=0.0,
        iterations=400,
        schedule=Schedule("cosine", warmup=10),
        loss=LossParams(auxiliary_weight=0.4 if name == "pyramid" else 0.0),
    )
    network = Compact(head, channels)
    initialise_untrained(network, 0, DEEPLAB.input_std)
    trainer = Trainer(recipe, _without_dropout(network))  # By heart: dropout would be in the way
    views = eight_images(voc)
    target = losses.align_labels(views.labels).numpy()
    found = 0.0
    for _ in range(16):
        for _ in range(25):
            trainer.train_step([views])
        with torch.no_grad():
            predicted = trainer.evaluation_network()(views.images).argmax(1).numpy().astype(np.uint8)
        counts = sum(evaluation.count_pixels(t, p, 21) for t, p in zip(target, predicted, strict=True))
        found = float(np.nanmean(evaluation.iou(counts)))
        if found > 0.95:
            break
    assert found > 0.95


def eight_images(voc: Path, crop_px: int = 65) -> Batch:
    """Eight photographs of several classes, squashed to the crop."""
    small = voc / "small"
    ids = (voc / "ImageSets/Segmentation/train_aug_have.txt").read_text().split()[:800:100]
    size = (crop_px, crop_px)
    images = [Image.open(small / "JPEGImages" / f"{name}.jpg").convert("RGB").resize(size) for name in ids]
    masks = [
        Image.open(small / "SegmentationClassAug" / f"{name}.png").resize(size, Image.Resampling.NEAREST)
        for name in ids
    ]
    pixels = normalise(np.stack([np.asarray(image) for image in images]), DEEPLAB)
    return Batch(pixels, torch.from_numpy(np.stack([np.asarray(mask) for mask in masks])))
