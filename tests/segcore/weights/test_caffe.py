import numpy as np
import pytest

from segcore.weights.caffe import NetParameter, read_caffemodel
from tests.segcore.weights.caffe_files import Maker, write


@pytest.fixture
def layers():
    maker = Maker()
    maker.conv("conv1_1", 4, 3, 3)
    maker.inner_product("fc6", 5, 36)
    return maker.layers


@pytest.mark.parametrize("old_form", [False, True])
def test_both_forms_give_the_same_tensors(tmp_path, layers, old_form):
    tensors = read_caffemodel(write(tmp_path / "a.caffemodel", layers, old_form=old_form))
    assert {name: value.shape for name, value in tensors.items()} == {
        "conv1_1.weight": (4, 3, 3, 3), "conv1_1.bias": (4,), "fc6.weight": (5, 36), "fc6.bias": (5,),
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["conv1_1.weight"], layers["conv1_1"][1][0])
    np.testing.assert_array_equal(tensors["fc6.weight"], layers["fc6"][1][0])


def test_normalisation_blobs(tmp_path):
    maker = Maker()
    maker.batch_norm("bn1", 3)
    maker.scale("scale1", 3)
    maker.bn("conv/bn", 2)
    tensors = read_caffemodel(write(tmp_path / "a.caffemodel", maker.layers))
    mean, variance, factor = maker.layers["bn1"][1]
    np.testing.assert_allclose(tensors["bn1.running_mean"], mean / factor)
    np.testing.assert_allclose(tensors["bn1.running_var"], variance / factor)
    assert tensors["scale1.weight"].shape == (3,)
    for name, blob in zip(("weight", "bias", "running_mean", "running_var"), maker.layers["conv/bn"][1], strict=True):
        np.testing.assert_array_equal(tensors[f"conv/bn.{name}"], blob.ravel())


def test_every_cut_is_refused_or_shows_as_missing_layers(tmp_path, layers):
    whole = write(tmp_path / "a.caffemodel", layers).read_bytes()
    for length in range(0, len(whole), 7):
        path = tmp_path / "cut.caffemodel"
        path.write_bytes(whole[:length])
        try:
            assert len(read_caffemodel(path)) < 4
        except ValueError as error:
            assert "cut.caffemodel" in str(error)


def test_hostile_lengths_and_shapes(tmp_path):
    path = tmp_path / "a.caffemodel"
    # Field 100 (`layer`), length 2^62.
    path.write_bytes(b"\xa2\x06" + b"\xff" * 8 + b"\x3f" + b"x" * 100)
    with pytest.raises(ValueError, match="cut short"):
        read_caffemodel(path)
    for shape in ((1 << 62, 4), (1 << 32, 1 << 32), (-1, -4), (3,), (), (1,) * 9 + (4,)):
        net = NetParameter()
        blob = net.layer.add(name=b"conv", type=b"Convolution").blobs.add()
        blob.data.append(np.ones(4, "<f4").tobytes())
        blob.shape.dim.extend(shape)
        path.write_bytes(net.SerializeToString())
        with pytest.raises(ValueError, match="do not fill its shape"):
            read_caffemodel(path)


def test_other_damage(tmp_path, layers):
    path = tmp_path / "a.caffemodel"
    for content, words in ((b"", "holds no weights"), (b"\x00" * 50, "cut short"), (b"<html></html>" * 9, "a.caffe")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_caffemodel(path)
    layers["conv1_1"][1][0][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="conv1_1 has values that are not finite"):
        read_caffemodel(write(path, layers))
    with pytest.raises(ValueError, match="There is no file"):
        read_caffemodel(tmp_path / "none.caffemodel")


def test_a_layer_twice_is_refused(tmp_path, layers):
    path = write(tmp_path / "a.caffemodel", layers)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="occurs twice"):
        read_caffemodel(path)


def test_names_that_are_not_utf8_are_survived(tmp_path):
    net = NetParameter()
    layer = net.layer.add(name=b"\xff\xfe", type=b"Convolution")
    layer.blobs.add(data=[np.ones(1, "<f4").tobytes()]).shape.dim.extend([1, 1, 1, 1])
    path = tmp_path / "a.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert len(read_caffemodel(path)) == 1
