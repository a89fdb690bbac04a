import pytest

from tasks.errors import JobError
from tasks.segmentation.archive_job import START_S, ArchiveJob
from tasks.segmentation.estimate import Nodes, Sample, estimate, measure
from tests.segcore.models.test_onnx_file import described


def test_the_sample_goes_through_all_stages_and_nothing_is_kept(photographs, tmp_path):
    (photographs / "broken.jpg").write_bytes(b"no photograph")
    output = tmp_path / "out"
    inference = {"long_side_px": 65, "precision": "fp32"}
    job = ArchiveJob(source=str(photographs), output=str(output), untrained=True, inference=inference)
    sample = measure(job, num_sample=6)
    assert (sample.images_listed, sample.images, sample.device) == (7, 6, "cpu/fp32")
    assert all(seconds > 0 for seconds in sample.seconds.values())


def test_nothing_to_measure(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="holds no images"):
        measure(ArchiveJob(source=str(tmp_path / "empty"), output=str(tmp_path / "out"), untrained=True), 3)


def test_time_and_price():
    sample = Sample(1000, 10, 0, {"read": 0.1, "score": 0.3, "refine": 0.1}, "cpu/bf16")
    found = estimate(sample, Nodes(count=2, cpus=5, gpus=0, price_per_hour=3.6))
    assert found.images_per_s == pytest.approx(20) and found.seconds == pytest.approx(START_S + 50)
    assert found.price == pytest.approx(2 * 3.6 * (START_S + 50) / 3600) and "scoring" in found.limit
    # Two GPUs would score 200 images/s, but eight other CPUs serve 40
    limited = estimate(sample, Nodes(2, 5, 1, 0.0), gpu_images_per_s=100)
    assert limited.images_per_s == pytest.approx(40) and "more CPUs" in limited.limit
    limited = estimate(sample, Nodes(2, 5, 1, 0.0), gpu_images_per_s=10)
    assert limited.images_per_s == pytest.approx(20) and "more GPUs" in limited.limit
    with pytest.raises(JobError, match="--gpu-images-per-s"):
        estimate(sample, Nodes(1, 4, 1, 0.0))
    with pytest.raises(JobError, match="more CPUs"):
        estimate(sample, Nodes(1, 1, 1, 0.0), gpu_images_per_s=10)


def test_a_model_as_onnx_is_measured(photographs, tmp_path):
    (tmp_path / "net").mkdir()
    path = described(tmp_path / "net", 3)
    sample = measure(ArchiveJob(source=str(photographs), output=str(tmp_path / "out"), model=str(path)), num_sample=3)
    assert sample.images == 3 and sample.device == "cpu/fp32"
