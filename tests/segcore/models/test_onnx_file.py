"""ONNX files of others: scored as ONNX Runtime does, refused in one sentence where they are not what they say."""

from pathlib import Path

import numpy as np
import pytest

from segcore.models import checkpoint, onnx_file
from segcore.models.onnx_network import _Graph, _integer, _part, _value
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams
from tasks.errors import JobError
from tasks.models.describe import describe_onnx


def given_model(classes: int = 150) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A 1 x 1 convolution of stride 4 to some classes, its weights (C, 3) and its bias."""
    dice = np.random.default_rng(0)
    weight = dice.normal(size=(classes, 3, 1, 1)).astype(np.float32)
    bias = dice.normal(size=classes).astype(np.float32)
    bias[255:] += 1  # So that some of those that need 16 bits win
    graph = _Graph({"layer.weight": weight, "layer.bias": bias})
    output = graph._convolution("images", "layer", weight, bias, 4, 1, False)
    return graph.model(output), weight[:, :, 0, 0], bias


def described(folder: Path, classes: int = 150) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(given_model(classes)[0])
    names = folder / "names.txt"
    names.write_text("\n".join(f"thing {n}" for n in range(classes)))
    describe_onnx(str(path), classes=str(names), preprocessing="0..1", stride=4)
    return path


def test_scores_are_the_graphs_own(tmp_path: Path) -> None:
    model = checkpoint.load(described(tmp_path))
    assert len(model.card.classes) == 150 and model.card.parameters == 150 * 4 + 2  # Two bounds of activations
    image = np.random.default_rng(1).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    found = Predictor(model, PredictParams(crf=None)).score([image])[0]
    _, weight, bias = given_model()
    expected = np.einsum("ck,hwk->chw", weight, image[::4, ::4] / 255) + bias[:, None, None]
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.interpolate(torch.tensor(expected)[None], (40, 52), mode="bilinear")[0].numpy()
    assert found.scores.shape == (150, 40, 52) and found.extent_px == (40, 52)
    assert np.abs(found.scores - (expected - expected.max(0))).max() < 5e-3  # float16 of numbers up to 8
    assert np.mean(found.scores.argmax(0) == expected.argmax(0)) > 0.999


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(given_model(5)[0])
    with pytest.raises(JobError, match=r"does not say what .* called: --classes .*; nor what its pixels are"):
        describe_onnx(str(path), classes=None, preprocessing=None)
    with pytest.raises(ValueError, match="models describe"):
        checkpoint.load(path)


def test_views_are_refused_before_anything_runs(tmp_path: Path) -> None:
    model = checkpoint.load(described(tmp_path, 3))
    with pytest.raises(ValueError, match="leave --scales"):
        Predictor(model, PredictParams(InferenceParams(scales=(0.5, 1.0)))).score([np.zeros((9, 9, 3), np.uint8)])


def test_the_digest_holds_weights_and_preprocessing(tmp_path: Path) -> None:
    path = described(tmp_path, 3)
    first = checkpoint.digest_of(path)
    assert first == checkpoint.load(path).digest
    card = tmp_path / "card.json"
    card.write_text(card.read_text().replace("255.0", "254.0"))
    assert checkpoint.digest_of(path) != first


def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    sound = given_model(3)[0]
    stray = _part(8, b"w") + _part(13, _part(1, b"location") + _part(2, b"../../etc/passwd")) + _integer(14, 1)
    external = _integer(1, 8) + _part(7, _part(5, stray) + _part(12, _value("w", 4)))
    in_node = _part(7, _part(1, _part(5, _part(5, stray))))
    huge = _part(7, b"")[:1] + b"\xff\xff\xff\xff\xff\x0f"
    for content, sentence in (
        (external, "weights in other files"),
        (in_node, "weights in other files"),
        (huge, "cut short"),
        (sound[:-20], "cut short"),
        (b"", "cut short"),
        (b"\x80\x04pickle", "cut short"),
        (sound + sound, "2 graphs"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            onnx_file.check(content, "net.onnx")
        assert "\n" not in str(caught.value)
    unknown = _integer(1, 8) + _part(7, _part(1, _part(2, b"y") + _part(4, b"Evil"))) + _part(8, _integer(2, 17))
    with pytest.raises(ValueError, match="cannot be run by ONNX Runtime"):
        onnx_file.open_session(unknown, "net.onnx")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "sky\ngrass\nwater\n"),
        ("names.txt", "0: sky\n1: grass\n2: water\n"),
        ("names.json", '["sky", "grass", "water"]'),
        ("names.yaml", "names:\n  0: sky\n  1: grass\n  2: water\n"),
        ("", "sky, grass,water"),
    ],
)
def test_class_names_are_read_as_those_of_a_dataset(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(given_model(3)[0])
    if name:
        (tmp_path / name).write_text(content)
    describe_onnx(str(path), classes=str(tmp_path / name) if name else content, preprocessing="imagenet", stride=4)
    assert checkpoint.load(path).card.classes == ("sky", "grass", "water")


def test_void_that_a_network_scores_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(given_model(3)[0])
    describe_onnx(str(path), classes="sky,void,water", preprocessing="imagenet", stride=4)
    assert checkpoint.load(path).card.classes == ("sky", "void", "water")
