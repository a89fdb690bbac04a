"""Folders of Hugging Face's layout: the library's own scores, and hostile ones refused in one sentence."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.hf_scorer import HfScorer
from segcore.scoring.inference import InferenceParams

transformers = pytest.importorskip("transformers")


WIDER = {"class_predictor": 6.0, "mask_embedder": 6.0, "mask_projection": 6.0, "aspp": 8.0, "classifier.": 8.0}
"""Layers that need larger weights, by parts of their names, so that labels differ and scores are as large as usual."""


def small_model(folder: Path, kind: str, classes: int = 150) -> Path:
    """A folder with a model of random weights that tell pixels apart, as `save_pretrained` writes it."""
    torch.manual_seed(3)
    names = {n: f"thing {n}" for n in range(classes)}
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    if kind == "segformer":
        config = transformers.SegformerConfig(
            id2label=names, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=32,
        )  # fmt: skip
        network = transformers.SegformerForSemanticSegmentation(config)
        processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 96})
    elif kind == "upernet":
        config = transformers.UperNetConfig(
            backbone_config=swin, id2label=names, hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2]
        )
        network = transformers.UperNetForSemanticSegmentation(config)
        processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 96})
    elif kind == "mobilevit":
        config = transformers.MobileViTConfig(
            id2label=names, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48],
            num_attention_heads=2, aspp_out_channels=16,
        )  # fmt: skip
        network = transformers.MobileViTForSemanticSegmentation(config)
        processor = transformers.MobileViTImageProcessorPil(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
        )
    elif kind == "beit":
        config = transformers.BeitConfig(
            id2label=names, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=64, out_indices=[1, 2, 3, 4], use_auxiliary_head=False, pool_scales=[1, 2],
        )  # fmt: skip
        network = transformers.BeitForSemanticSegmentation(config)
        processor = transformers.BeitImageProcessorPil(size={"height": 64, "width": 64})
    elif kind == "dpt":
        config = transformers.DPTConfig(
            id2label=names, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            image_size=64, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
            use_auxiliary_head=False,
        )  # fmt: skip
        network = transformers.DPTForSemanticSegmentation(config)
        processor = transformers.DPTImageProcessorPil(size={"height": 64, "width": 64})
    elif kind == "maskformer":
        detr = transformers.DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=9,
        )  # fmt: skip
        swin = transformers.MaskFormerSwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], out_features=["stage1", "stage2", "stage3", "stage4"]
        )
        config = transformers.MaskFormerConfig(
            backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=32, id2label=names
        )
        network = transformers.MaskFormerForInstanceSegmentation(config)
        processor = transformers.MaskFormerImageProcessorPil(size={"height": 64, "width": 96})
    else:
        config = transformers.Mask2FormerConfig(
            backbone_config=swin, id2label=names, feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            num_queries=9,
        )  # fmt: skip
        network = transformers.Mask2FormerForUniversalSegmentation(config)
        processor = transformers.Mask2FormerImageProcessorPil(size={"height": 64, "width": 96})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Plain initialisations of transformers give one label everywhere
            if parameter.ndim > 1 and "norm" not in name:
                wide = next((factor for part, factor in WIDER.items() if part in name), 1.5)
                parameter.normal_(0, wide / parameter[0].numel() ** 0.5)
        if kind == "mobilevit":
            network.segmentation_head.classifier.convolution.weight.mul_(1e5)
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


KINDS = ["segformer", "mask2former", "upernet", "dpt", "beit", "mobilevit", "maskformer"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_labels_are_the_librarys_own(tmp_path: Path, kind: str) -> None:
    folder = small_model(tmp_path / "model", kind)
    dice = np.random.default_rng(0)
    image = np.array(Image.fromarray(dice.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((101, 70)))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = {
        "mask2former": transformers.Mask2FormerForUniversalSegmentation,
        "maskformer": transformers.MaskFormerForInstanceSegmentation,
    }.get(kind, transformers.AutoModelForSemanticSegmentation).from_pretrained(folder)
    cut = {"do_center_crop": False} if kind == "mobilevit" else {}
    with torch.inference_mode():
        outputs = network(**processor(images=Image.fromarray(image), return_tensors="pt", **cut))
    [theirs] = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(70, 101)], return_segmentation_scores=True
    )
    model = checkpoint.load(folder)
    assert model.card.classes[149] == "thing 149" and model.digest == checkpoint.digest_of(folder)
    predictor = Predictor(model, PredictParams(crf=None), device="cpu", num_threads=1)
    assert isinstance(predictor.scorer, HfScorer) and predictor.device == "cpu/fp32"
    assert np.abs(predictor.scorer.scores(image) - theirs.segmentation_scores.numpy()).max() < 1e-4
    labels = predictor.segment(predictor.prepare(image)).mask
    assert np.array_equal(labels, theirs.segmentation.numpy()) and len(np.unique(labels)) > 1


def test_several_files_of_weights_and_other_names_are_read(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "segformer", 5)
    whole = checkpoint.load(folder)
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    parts = tmp_path / "models--org--net" / "snapshots" / "abc"
    network.save_pretrained(parts, max_shard_size="60KB")
    (parts / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    assert len(list(parts.glob("*.safetensors"))) > 1
    loaded = checkpoint.load(parts)
    assert loaded.name == "org/net"
    packed = checkpoint.load_packed(checkpoint.pack(parts))
    assert packed.digest == loaded.digest != whole.digest
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, packed.module.state_dict()[name])


def test_weights_and_preprocessing_are_in_the_digest(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "segformer", 3)
    first = checkpoint.digest_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert checkpoint.digest_of(folder) == first
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"image_mean": [0.5, 0.5, 0.5]}))
    second = checkpoint.digest_of(folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    assert len({first, second, checkpoint.digest_of(folder)}) == 3


def test_views_and_windows_are_refused_before_anything_runs(tmp_path: Path) -> None:
    model = checkpoint.load(small_model(tmp_path / "model", "segformer", 3))
    for params in (InferenceParams(mirror=True), InferenceParams(crop_px=65), InferenceParams(precision="bf16")):
        with pytest.raises(ValueError, match="in float32 and in one pass"):
            Predictor(model, PredictParams(params)).score([np.zeros((9, 9, 3), np.uint8)])


def test_hostile_folders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "segformer", 3)
    config = json.loads((folder / "config.json").read_text())
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def refused(**files: object) -> str:
        names = {"config": "config.json", "preprocessor": "preprocessor_config.json", "weights": "model.safetensors",
                 "index": "model.safetensors.index.json", "pickle": "pytorch_model.bin"}  # fmt: skip
        given = {"config": config, "preprocessor": preprocessor, "weights": weights} | files
        for path in folder.iterdir():
            path.unlink()
        for name, content in given.items():
            if content is not None:
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                (folder / names[name]).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            checkpoint.load(folder)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
        return str(caught.value)

    assert "code of its own" in refused(config=config | {"auto_map": {"AutoModel": "evil.Model"}})
    assert "code of its own" in refused(config=config | {"backbone_config": {"auto_map": {}}})
    assert "code of its own" in refused(preprocessor=preprocessor | {"auto_map": {"AutoImageProcessor": "evil.P"}})
    assert "pickle" in refused(weights=None, pickle=b"\x80\x04.")
    assert "holds no model.safetensors" in refused(weights=None)
    for name in ("../../etc/passwd", "/etc/passwd.safetensors", "a/b.safetensors", "..\\x.safetensors"):
        assert "of its own folder" in refused(weights=None, index={"weight_map": {"a": name}})
    assert "lacks no.safetensors" in refused(weights=None, index={"weight_map": {"a": "no.safetensors"}})
    assert "header does not fit" in refused(weights=struct.pack("<Q", 1 << 30) + b"{" * 100)
    assert "header does not fit" in refused(weights=b"")
    assert "safetensors file" in refused(weights=weights[:-10])
    assert "is not JSON" in refused(config=b"[" * 100_000)
    assert "is not JSON" in refused(config=b"\xff\xfe")
    assert "larger than" in refused(config=b" " * (9 << 20))
    assert "the semantic ones are" in refused(config=config | {"model_type": "llama"})
    assert "the semantic ones are" in refused(config=config | {"model_type": ["segformer"]})
    assert "no classes of pixels" in refused(config=config | {"architectures": ["SegformerForImageClassification"]})
    assert "does not name its classes" in refused(config=config | {"id2label": {"0": "a", "7": "b"}})
    assert "layers" in refused(config=config | {"depths": [10**9, 1, 1, 1]})
    assert "that is no model" in refused(config=config | {"decoder_hidden_size": 10**12})
    assert "more than 8192" in refused(preprocessor=preprocessor | {"size": {"height": 10**6, "width": 10**6}})
    assert "do things to a terminal" in refused(config=config | {"id2label": {"0": "\x1b[2J", "1": "b", "2": "c"}})
    assert "is not one of" in refused(preprocessor=preprocessor | {"image_processor_type": "os.system"})
    assert "holds no preprocessor_config.json" in refused(preprocessor=None)
    assert "do not fit" in refused(config=config | {"depths": [1, 1, 1, 3]})
    assert "cannot build" in refused(config=config | {"hidden_sizes": "many"})
    assert "cannot build" in refused(config=config | {"decoder_hidden_size": 48})
    assert "quantised" in refused(config=config | {"quantization_config": {"quant_method": "bitsandbytes"}})
