"""A training on Ray Train that is killed, loses a worker, or goes astray; and what it refuses before it begins."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from segcore.learning.recipes import RECIPES, LossParams
from segcore.models import checkpoint
from tasks import storage
from tasks.datasets import shards
from tasks.datasets.shards import read_manifest
from tasks.errors import JobError
from tasks.models import remote as remote_models
from tasks.storage import Location, locate
from tasks.training import checkpoints
from tasks.training.data import Loader, SplitReader, read_teacher
from tasks.training.driver import Driver
from tasks.training.resolved import check_identity, resolve
from tasks.training.train import plan, train
from tasks.training.training_job import TrainJob, job_recipe
from tests.conftest import Bucket
from tests.flows.test_reliability import kill_tree
from tests.tasks.small_dataset import write_dataset

# Frozen batch normalisation, no dropout: two workers can equal one. From seeded weights the recipe's learning rate runs
# away to nan, and at a tenth of it a last bit still grows a thousandfold in ten steps; at this one it does not.
RECIPE = dataclasses.replace(
    RECIPES["deeplab_v2_resnet18"],
    batch_size=4,
    iterations=24,
    learning_rate=1e-6,
    loss=LossParams(),
    augmentation=dataclasses.replace(RECIPES["deeplab_v2_resnet18"].augmentation, crop_px=33),
)


def job(dataset: str, output: str, **changes) -> TrainJob:
    given = {
        "recipe": RECIPE,
        "split": "train",
        "validation_images": 0,
        "checkpoint_every": 4,
        "num_workers": 1,
        "num_threads": 1,
    }
    return TrainJob(dataset=dataset, output=output, **{**given, **changes})


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("dataset"))).uri


def test_what_cannot_be_trained_is_refused_at_once(dataset, tmp_path):
    output = str(tmp_path / "out")
    with pytest.raises(JobError, match="no prepared dataset"):
        train(job(str(tmp_path), output))
    with pytest.raises(JobError, match="no split 'train_aug'; it has train, val"):
        train(job(dataset, output, split="train_aug"))
    with pytest.raises(JobError, match="learns from a teacher"):
        soft = dataclasses.replace(RECIPE, loss=LossParams(teacher_share=0.5))
        train(job(dataset, output, recipe=soft))
    with pytest.raises(JobError, match="33 would be"):
        train(job(dataset, output, crop_px=40))
    with pytest.raises(JobError, match="initial weights cannot be used"):
        train(job(dataset, output, initial=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="did you mean"):
        job(dataset, output, recipe="pspnet102")
    assert not (tmp_path / "out").exists()


def test_a_job_changes_its_recipe():
    asked = job("data", "out", recipe="deeplab_v1", batch_size=40, learning_rate=3e-5, precision="bf16", crop_px=129)
    recipe = job_recipe(asked, 10_582)
    # The rate is that of the job, not twice the paper's; the steps follow the batch
    assert (recipe.learning_rate, recipe.batch_size, recipe.iterations) == (3e-5, 40, 3000)
    assert (recipe.precision, recipe.augmentation.crop_px, recipe.seed) == ("bf16", 129, 0)
    with pytest.raises(ValueError, match="learning_rate"):
        job("data", "out", learning_rate=0.0)


def test_a_job_says_its_length_in_one_way():
    assert job_recipe(job("data", "out", epochs=3.0), 40).iterations == 30
    assert job_recipe(job("data", "out", recipe="fast_pspnet18"), 219).iterations == 616
    assert job_recipe(job("data", "out", recipe="fast_pspnet18", iterations=7), 219).iterations == 7
    with pytest.raises(ValueError, match="epochs and minutes are both given"):
        job("data", "out", epochs=3.0, minutes=5.0)
    cropped = job_recipe(job("data", "out", recipe="pspnet_lite0", crop_px=129), 219)
    assert {phase.crop_px for phase in cropped.phases} == {129}


def test_a_training_of_before_goes_on(dataset, tmp_path):
    """Its record has neither the newer fields of a recipe nor lacks those that went; they did nothing."""
    resolved = resolve(job(dataset, str(tmp_path)))
    identity = json.loads(json.dumps(resolved.identity))
    for name in ("phases", "draw_power", "max_epochs", "second_momentum"):
        del identity["recipe"][name]
    for name in ("class_power", "teacher_share"):
        del identity["recipe"]["loss"][name]
    identity["recipe"]["loss"] |= {"class_weights": None, "ohem_share": 1.0, "soft_weight": 0.0}
    check_identity(resolved, {"identity": identity})
    identity["recipe"]["loss"]["ohem_share"] = 0.5
    with pytest.raises(JobError, match=r"differs in recipe\.loss\.ohem_share"):
        check_identity(resolved, {"identity": identity})


def test_a_dataset_without_val_is_trained_without_validation(tmp_path):
    place = write_dataset(str(tmp_path / "data"))
    manifest = read_manifest(place)
    kept = {name: split for name, split in manifest.splits.items() if name != "val"}
    shards.write_manifest(place, manifest.model_copy(update={"splits": kept}))
    resolved = resolve(job(place.uri, str(tmp_path / "out"), validation_images=10))
    assert resolved.job.validation_images == 0
    with pytest.raises(JobError, match="no split 'val'"):
        resolve(job(place.uri, str(tmp_path / "out"), validation_images=10, validation_split="val"))


def test_a_teacher_may_have_a_share_for_each_image(dataset, tmp_path):
    given = {"ids": ["photo-0", "photo-3"], "probabilities": np.full((2, 3, 5, 5), 85, np.uint8)}
    np.savez(tmp_path / "teacher.npz", **given, shares=[0.25, 1.0])
    each = loader(dataset, 0, 1, 1, read_teacher(str(tmp_path / "teacher.npz"), 3))
    expected = {"photo-0": 0.25, "photo-3": 1.0}
    for sample, part in zip(each.samples(0), each.batches(0), strict=True):
        assert part.teacher_share.shape == part.inside.shape
        share = expected.get(each.reader.ids[sample.index], RECIPE.loss.teacher_share)
        assert (part.teacher_share == share).all()
    each.stop()
    np.savez(tmp_path / "wrong.npz", **given, shares=[0.25, 1.5])
    with pytest.raises(JobError, match="one number from 0 to 1"):
        read_teacher(str(tmp_path / "wrong.npz"), 3)


def test_checkpoints_are_kept_and_removed(tmp_path, bucket: Bucket):
    for output in (locate(str(tmp_path)), locate(f"s3://{bucket.name}/out")):
        for step in (2, 4, 6, 8):
            checkpoints.write_checkpoint(output, step, {"weights": torch.full((3,), float(step))})
            checkpoints.remove_old(output, keep=2, best=2)
        assert checkpoints.checkpoint_steps(output) == [2, 6, 8]
        assert checkpoints.read_checkpoint(output, 6)["weights"].tolist() == [6, 6, 6]
        data = storage.read_bytes(checkpoints.place_of(output, 8))
        storage.write_whole(checkpoints.place_of(output, 8), data[: len(data) // 2])
        with pytest.raises(JobError, match=r"step-00000008\.pt is damaged"):
            checkpoints.read_checkpoint(output, 8)


def loader(dataset: str, rank: int, num_workers: int, num_threads: int, teacher=None) -> Loader:
    place = locate(dataset)
    reader = SplitReader(place, read_manifest(place).split("train"), cache_bytes=0)
    preprocessing = checkpoint.models.variant(RECIPE.model).preprocessing
    return Loader(
        reader, RECIPE, preprocessing, teacher, rank=rank, num_workers=num_workers, images_at_once=1,
        num_threads=num_threads, device=torch.device("cpu"),
    )  # fmt: skip


def test_batches_do_not_depend_on_workers_or_threads(dataset):
    alone = loader(dataset, 0, 1, num_threads=1)
    halves = [loader(dataset, rank, 2, num_threads=3) for rank in range(2)]
    for step in range(3):
        whole = alone.batches(step)
        shared = [part for half in halves for part in half.batches(step)]
        assert len(whole) == len(shared) == 4  # Parts of one image
        for one, other in zip(whole, shared, strict=True):
            assert one.images.equal(other.images)
            assert one.labels.equal(other.labels)
    for each in (alone, *halves):
        each.stop()


def test_a_share_that_is_one_short_is_filled_up_with_nothing_to_learn(dataset):
    alone = loader(dataset, 0, 1, 1)
    thirds = [loader(dataset, rank, 3, 1) for rank in range(3)]
    shares = [third.batches(0) for third in thirds]
    assert [len(share) for share in shares] == [2, 2, 2], "as many passes on every worker, of a batch of 4"
    learnt = [part for share in shares for part in share if (part.labels != 255).any()]
    assert len(learnt) == 4
    for one, other in zip(alone.batches(0), learnt, strict=True):
        assert one.labels.equal(other.labels)
    for each in (alone, *thirds):
        each.stop()


def test_a_teacher_speaks_for_the_images_it_knows(dataset, tmp_path):
    probabilities = np.zeros((2, 3, 5, 5), np.uint8)
    probabilities[:, 1] = 255
    np.savez(tmp_path / "teacher.npz", ids=["photo-0", "photo-3"], probabilities=probabilities)
    teacher = read_teacher(str(tmp_path / "teacher.npz"), 3)
    each = loader(dataset, 0, 1, 1, teacher)
    known = 0
    for step in range(2):  # One epoch
        for sample, part in zip(each.samples(step), each.batches(step), strict=True):
            assert part.soft is not None and part.inside is not None
            if each.reader.ids[sample.index] in ("photo-0", "photo-3"):
                known += 1
                assert part.inside.any()
                assert part.soft[0, 1][part.inside[0]].min() > 0.99
            else:
                assert not part.inside.any()
    each.stop()
    assert known == 2
    with pytest.raises(JobError, match=r"expected uint8 \(2, 21, h, w\)"):
        read_teacher(str(tmp_path / "teacher.npz"), 21)


def test_a_model_in_a_bucket_is_brought_once_for_each_version(tmp_path, bucket: Bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = checkpoint.load("deeplab_v2_resnet18", untrained=True)
    checkpoint.save(tmp_path / "model", model.module, model.card)
    for name in ("model.safetensors", "card.json"):
        bucket.put(f"models/mine/{name}", (tmp_path / "model" / name).read_bytes())
    uri = f"s3://{bucket.name}/models/mine"
    path = remote_models.local_model(uri)
    assert remote_models.local_model(f"{uri}/model.safetensors") == path
    assert checkpoint.digest_of(path) == checkpoint.digest_of(tmp_path / "model")
    bucket.put("models/mine/card.json", (tmp_path / "model" / "card.json").read_bytes() + b" ")
    assert remote_models.local_model(uri) != path
    with pytest.raises(JobError, match="There is no model at s3://"):
        remote_models.local_model(f"s3://{bucket.name}/models/other")


def weights(output: str) -> dict[str, torch.Tensor]:
    place = Path(remote_models.local_model(f"{output}/model"))
    return load_file(place / "model.safetensors")


def test_a_training_that_waits_says_for_what(dataset, ray_cluster, tmp_path):
    asked = job(dataset, str(tmp_path / "out"), num_workers=2)
    driver = Driver(resolve(asked), {})
    driver.per_worker = {"CPU": 1}
    assert driver.missing() == ""
    driver.per_worker = {"CPU": 2}  # As where a node is gone
    assert "2 workers are needed, with 2 CPUs each, and the cluster has room for 1. Add a node" in driver.missing()
    assert "--min-workers 1" in driver.missing()
    with pytest.raises(JobError, match="At least 3 workers are asked for, but 2 at most"):
        Driver(resolve(asked.model_copy(update={"min_workers": 3})), {})
    with pytest.raises(JobError, match="cannot be shared by 2 workers"):
        Driver(resolve(asked.model_copy(update={"batch_size": 1})), {})


@pytest.fixture(scope="module")
def undisturbed(dataset, ray_cluster, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights of a training that nothing happened to."""
    output = str(tmp_path_factory.mktemp("undisturbed"))
    assert train(job(dataset, output)).restarts == 0
    return weights(output)


def wait_for_step(output: Location, step: int, alive) -> None:
    while max(checkpoints.checkpoint_steps(output), default=0) < step:
        assert alive(), "it has ended already"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_it_ends_with_the_same_weights(dataset, undisturbed, tmp_path, bucket, monkeypatch):
    """SIGKILL for the driver, Ray's servers and the workers, all at once, between two checkpoints or within one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    output = f"s3://{bucket.name}/out"
    asked = job(dataset, output)
    program = (
        "import sys; from tasks.training.train import train; from tasks.training.training_job import TrainJob; "
        "train(TrainJob.model_validate_json(sys.stdin.read()))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(asked.model_dump_json().encode())
    process.stdin.close()
    process.stdin = None
    wait_for_step(locate(output), 4, lambda: process.poll() is None)
    time.sleep(0.3)
    kill_tree(process)
    report = train(asked)
    assert 4 <= report.resumed_from < 24
    assert report.steps_now == 24 - report.resumed_from
    found = weights(output)
    assert found.keys() == undisturbed.keys()
    assert [name for name in found if not found[name].equal(undisturbed[name])] == []
    # Every step has one row, whatever parts the killed session left
    rows = storage.read_bytes(locate(output) / "metrics.parquet")
    assert pq.read_table(pa.BufferReader(rows)).column("step").to_pylist() == list(range(24))


def workers_below(pid: int) -> list[int]:
    """Processes of Ray Train workers whose ancestor is this process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if b"RayTrainWorker" not in (place / "cmdline").read_bytes():
                continue
            at = int(place.name)
            while at > 1 and at != pid:
                at = int((Path("/proc") / str(at) / "stat").read_text().rpartition(")")[2].split()[1])
            if at == pid:
                found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_worker_is_survived(dataset, ray_cluster, tmp_path, monkeypatch, capsys):
    """One of two workers is killed midway: both start again from the newest checkpoint, and nothing can be told of it.

    Against an undisturbed training of two workers, since one worker adds up in another order.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    undisturbed, output = str(tmp_path / "undisturbed"), str(tmp_path / "out")
    assert train(job(dataset, undisturbed, num_workers=2)).restarts == 0
    reports = []
    training = threading.Thread(target=lambda: reports.append(train(job(dataset, output, num_workers=2))))
    training.start()
    wait_for_step(locate(output), 4, training.is_alive)
    workers = workers_below(os.getpid())
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    training.join()
    assert [report.restarts for report in reports] == [1]
    printed = "".join(capsys.readouterr())
    logs = [path.read_text() for path in (tmp_path / "cache").rglob("segment-archive-ray-*.log")]
    assert "raylet" not in printed and any("A worker died" in text for text in logs)
    found, expected = weights(output), weights(undisturbed)
    assert [name for name in found if not found[name].equal(expected[name])] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loss_that_is_no_number_ends_it_with_step_and_images(dataset, ray_cluster, tmp_path):
    hopeless = dataclasses.replace(RECIPE, learning_rate=1e18)
    told = r"The loss of step \d+ is (nan|inf).*Its batch: photo-\d, photo-\d.*learning rate, or initial weights"
    with pytest.raises(JobError, match=told):
        train(job(dataset, str(tmp_path / "out"), recipe=hopeless))
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plan_counts_and_measures_and_writes_nothing(dataset, ray_cluster, tmp_path):
    found = plan(job(dataset, str(tmp_path / "out"), batch_size=2, iterations=1000))
    assert not (tmp_path / "out").exists()
    # ResNet-18 at 3 classes; its frozen batch normalisation is all that does not train
    by_label = {group.label: group.parameters for group in found.groups}
    assert by_label == {"x1 decay 0.0005": 11_166_912, "x10 decay 0.0005": 4 * 3 * 512 * 9, "x20 decay 0": 4 * 3}
    assert found.frozen == 9_600
    assert (found.images, found.steps, found.epochs) == (8, 1000, 250)
    assert found.seconds_per_step > 0
    assert 0 < found.device_busy <= 1
    assert found.peak_bytes > 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_that_cannot_be_read_ends_it_by_its_name(ray_cluster, tmp_path):
    place = write_dataset(str(tmp_path / "data"), num_train=4)
    split = read_manifest(place).split("train")
    table = shards.read_row_group(place, shards.row_groups(split)[0])
    rows = [shards.ShardRow(**row) for row in table.to_pylist()]
    shards.write_part(place, split.files[0].path, [*rows[:-1], dataclasses.replace(rows[-1], image=b"garbage")])
    with pytest.raises(JobError, match=f"image {rows[-1].id} cannot be used"):
        train(job(str(tmp_path / "data"), str(tmp_path / "out")))
