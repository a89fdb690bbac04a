"""The training of the default model on a handful of small photographs: goes on after its end, ends as a model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segcore import checkpoint, models
from segcore.augment import AugmentParams
from segcore.distillation import Phase, Plan
from segcore.models.pspnet import CompactPspNet
from tasks.errors import JobError
from tasks.training import default_model
from tests.conftest import photograph

PLAN = Plan(phases=(Phase(until=1.0, step=8, batch=4, views=AugmentParams(crop_px=33, stride_px=32), mix=0.5),))
CLASSES = (8, 12, 13, 15)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six training photographs with a teacher, two of val, in the folders of the real data."""
    folder = tmp_path / "voc2012"
    splits = folder / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (splits / "val.txt").write_text("v0\nv1\nv2\n")
    (splits / "val_have.txt").write_text("v0\nv1\n")
    for root, names in ((folder / "small", [f"t{number}" for number in range(6)]), (folder, ["v0", "v1"])):
        (root / "JPEGImages").mkdir(parents=True)
        (root / "SegmentationClassAug").mkdir()
        for number, name in enumerate(names):
            photograph(number, (60, 45)).save(root / "JPEGImages" / f"{name}.jpg")
            mask = np.zeros((45, 60), np.uint8)
            mask[10:30, 20:50] = CLASSES[number % 4]
            mask[10] = 255
            Image.fromarray(mask).save(root / "SegmentationClassAug" / f"{name}.png")
    teacher = np.zeros((6, 21, 5, 5), np.uint8)
    teacher[:, 0] = 255
    np.savez(folder / "small" / "teacher.npz", ids=[f"t{number}" for number in range(6)], probabilities=teacher)
    return folder


def test_a_training_goes_on_and_ends_as_the_model_that_was_averaged(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model = tmp_path / "work", tmp_path / "models" / "pspnet14"
    calls = iter(range(7))
    original = default_model._sum_gradients

    def interrupted(replicas: list[CompactPspNet]) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        original(replicas)

    monkeypatch.setattr(default_model, "_sum_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        default_model.train(data, work, 30.0, plan=PLAN, save_every_minutes=0.0)
    monkeypatch.undo()
    first = torch.load(work / "checkpoint.pt", weights_only=True)["progress"]
    assert (first["steps"], first["images"], first["sessions"]) == (7, 28, 1)
    assert 0 < first["share"] < 1

    # What is left of the plan in what is left of another budget
    minutes = first["seconds"] / 60 + 0.02
    state = torch.load(default_model.train(data, work, minutes, plan=PLAN), weights_only=True)
    assert state["progress"]["steps"] > 7
    assert (state["progress"]["share"], state["progress"]["sessions"]) == (1.0, 2)
    again = torch.load(default_model.train(data, work, minutes, plan=PLAN), weights_only=True)
    assert again["progress"] == state["progress"], "a training that is done does nothing"

    metrics = default_model.finish(work / "checkpoint.pt", model, data, commit="abc")
    tensors = load_file(model / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16, torch.int64}
    loaded = checkpoint.load(model)
    assert (loaded.card.variant, loaded.card.commit, loaded.card.untrained) == ("pspnet14", "abc", False)
    assert loaded.card.metrics == metrics
    assert loaded.card.training_split == "voc2012-train_aug"
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32, torch.int64}
    averaged = state["average"]["head.classifier.weight"].bfloat16().float()
    assert torch.equal(loaded.module.state_dict()["head.classifier.weight"], averaged)
    assert 0 <= metrics["voc2012-val-300/with_crf/miou_7_percent"] <= 100


def test_two_replicas_learn_what_one_learns_from_the_same_views() -> None:
    # Without batch statistics between them: dropout and normalisation off
    torch.manual_seed(0)
    network = models.build("pspnet14", 3).eval()
    network.take_shrunk(True)
    network.train = lambda mode=True: network  # type: ignore[method-assign, assignment]
    images, targets = torch.randn(4, 3, 33, 33), torch.softmax(torch.randn(4, 3, 2, 2), 1)
    other = default_model._replica(network)
    other.train = lambda mode=True: other  # type: ignore[method-assign, assignment]
    weights = torch.ones(3)

    def gradients(parts: list[tuple[object, slice]]) -> torch.Tensor:
        for replica, part in parts:
            default_model._gradients(replica, 8, images[part], targets[part], weights, len(parts))
        default_model._sum_gradients([replica for replica, _ in parts])
        summed = network.head.classifier.weight.grad.clone()
        network.zero_grad()
        return summed

    alone = gradients([(network, slice(0, 4))])
    together = gradients([(network, slice(0, 2)), (other, slice(2, 4))])
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=1e-3)
    with torch.no_grad():
        network.head.classifier.weight.fill_(3.0)
    assert (other.head.classifier.weight == 3).all(), "replicas share their weights"


def test_batches_depend_on_seed_and_step_alone(data: Path) -> None:
    photographs = default_model.load_training(data)
    weights, _ = default_model.drawing_weights(photographs.masks, 0.5)
    assert weights.sum() == pytest.approx(1)
    batches = default_model.Batches(photographs, weights, 0)
    one, again, other = (batches.make(step, PLAN.phases[0]) for step in (3, 3, 4))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_rare_classes_are_drawn_more_often(data: Path) -> None:
    masks = [np.full((4, 4), 8, np.uint8)] * 9 + [np.full((4, 4), 17, np.uint8)]
    weights, pixels = default_model.drawing_weights(masks, 0.5)
    assert weights[9] == pytest.approx(3 * weights[0])
    assert pixels[17] == pytest.approx(weights[9])


def test_photographs_of_val_are_refused(data: Path) -> None:
    (data / "ImageSets" / "Segmentation" / "val.txt").write_text("t3\n")
    with pytest.raises(JobError, match="of VOC 2012 val, such as t3"):
        default_model.load_training(data)
    with pytest.raises(JobError, match="no training set"):
        default_model.load_training(data / "nowhere")
