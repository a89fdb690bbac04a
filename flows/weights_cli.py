"""Console commands about models: `segment-archive models`, `presets`, `weights import`, `export`, `pull` and `list`."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from flows import screen
from flows.options import Json, Quiet, flag
from tasks.errors import JobError

weights = App(name="weights", help="Import, export or pull weights.", help_format="plaintext")


@weights.command(name="import")
def import_file(
    file: Annotated[str, Parameter(help="Caffe .caffemodel, PyTorch .pth, or .safetensors.")],
    /,
    *,
    model: Annotated[
        str, Parameter(name=("--model", "-m"), help="Model that it becomes; see `segment-archive models`.")
    ],
    name: Annotated[str | None, Parameter(help="What --model finds it under.", show_default="the model's name")] = None,
    classes: Annotated[str | None, Parameter(help="Class names by label, separated by commas.")] = None,
    training_split: Annotated[
        str | None, Parameter(help="What the weights saw, such as voc2012-train_aug; guards the evaluation.")
    ] = None,
    as_init: Annotated[bool, flag("Take the backbone only, to start training from.")] = False,
    replace: Annotated[bool, flag("Put it in the place of weights of that name.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import weights that others published; their layout is recognised.

    For example:

    segment-archive weights import deeplab.caffemodel --model deeplab_v1_largefov
    """
    from tasks.models import weights

    names = None if classes is None else [part.strip() for part in classes.split(",")]
    try:
        imported = weights.import_weights(
            file, model, name=name, classes=names, training_split=training_split, as_init=as_init, replace=replace
        )
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    _show(imported, name or model, json, quiet)


@weights.command
def pull(
    name: Annotated[str, Parameter(help="Entry of the catalogue; see `segment-archive weights list`.")],
    /,
    *,
    replace: Annotated[bool, flag("Fetch it again.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch, check and import published weights; continues a download that was interrupted.

    For example:

    segment-archive weights pull NAME
    """
    from tasks.models import weights

    def show(done: int, total: int | None) -> None:
        share = f"{100 * done / total:.0f} %" if total else f"{done / 1e6:.0f} MB"
        print(f"\r{name}: {share}", end="", file=sys.stderr, flush=True)

    try:
        pulled = weights.pull(
            name, replace=replace, progress=show if sys.stderr.isatty() and not (json or quiet) else None
        )
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    _show(pulled, name, json, quiet)


@weights.command
def export(
    name: Annotated[str, Parameter(help="Name of a model, or path or URI of a model directory.")],
    file: Annotated[str, Parameter(help="ONNX file to write, in a folder of its own.")],
    /,
    *,
    untrained: Annotated[bool, flag("Seeded random weights, where there are no trained ones.")] = False,
    replace: Annotated[bool, flag("Overwrite the file and its card.")] = False,
    int8: Annotated[bool, flag("Convolutions of eight bits, calibrated on photographs; compares the labels.")] = False,
    calibration: Annotated[
        str | None, Parameter(help="Folder of photographs for --int8, like those to be segmented; 100 are taken.")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a model as an ONNX file for pictures of any size, and its card beside it, so that --model takes the file.

    For example:

    segment-archive weights export pspnet_lite2 net/model.onnx

    segment-archive weights export deeplab_v2_resnet101 small/model.onnx --int8 --calibration ~/photos
    """
    from tasks.models import weights

    try:
        exported = weights.export_weights(
            name, file, untrained=untrained, replace=replace, int8=int8, calibration=calibration
        )
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    _show(exported, file, json, quiet)


def _show(told: str, name: str, json: bool, quiet: bool) -> None:
    """What was made, and the name that --model finds it under."""
    if json:
        screen.print_json({"model": name, "told": told})
    elif not quiet:
        print(told)


@weights.command(name="list")
def list_catalogue(*, json: Json = False) -> None:
    """List what can be pulled: name, training split, score, licence, and whether we have fetched it ourselves.

    For example:

    segment-archive weights list --json
    """
    from tasks.models import weights

    entries = weights.read_catalogue()
    if json:
        screen.print_json(entries)
        return
    for entry in entries.values():
        checked = "verified" if entry.verified else "unverified"
        how = "by hand" if entry.manual else "pull"
        print(f"{entry.name}\n    {entry.trained_on}; {entry.score or 'initialisation'}; {how}, {checked}")
        print(f"    licence: {entry.licence}; read in {entry.read_in}")


models = App(name="models", help="List the models, or describe an ONNX file.", help_format="plaintext")


@models.command
def describe(
    file: Annotated[str, Parameter(help="ONNX file.")],
    /,
    *,
    classes: Annotated[
        str | None, Parameter(help="Class names by label, separated by commas, or a text file with one a line.")
    ] = None,
    preprocessing: Annotated[
        str | None, Parameter(help="What the pixels become: imagenet, 0..1, -1..1 or 0..255.")
    ] = None,
    stride: Annotated[int, Parameter(help="Sides are padded to multiples of this many pixels.")] = 32,
    probabilities: Annotated[bool, flag("The output holds probabilities rather than logits.")] = False,
    scores_output: Annotated[str | None, Parameter(help="Name of the output, where there are several.")] = None,
    training_split: Annotated[str, Parameter(help="What the weights saw; guards the evaluation.")] = "unknown",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the card of an ONNX file beside it, so that --model takes the file; asks for what the graph does not say.

    For example:

    segment-archive models describe model.onnx --classes names.txt --preprocessing imagenet
    """
    from tasks.models.describe import describe_onnx

    told = describe_onnx(
        file,
        classes=classes,
        preprocessing=preprocessing,
        stride=stride,
        probabilities=probabilities,
        output=scores_output or "",
        training_split=training_split,
    )
    _show(told, file, json, quiet)


@models.default
def list_models(*, json: Json = False) -> None:
    """List the models: parameters at 21 classes, published mean IoU on VOC 2012, weights at hand.

    For example:

    segment-archive models

    segment-archive models --json
    """
    from tasks.models import weights

    rows = weights.list_models()
    if json:
        screen.print_json(rows)
        return
    width = max(len(row.name) for row in rows)
    print(f"{'model':<{width}}  {'parameters':>11}  {'weights':<24}  published")
    for row in rows:
        print(f"{row.name:<{width}}  {row.parameters:>11,}  {row.weights:<24}  {row.published}".rstrip())


def presets(*, json: Json = False) -> None:
    """List the published CRF parameters, which --crf-preset takes by name.

    w1, xy and rgb belong to the appearance kernel, w2 and xy2 to the smoothness kernel.

    For example:

    segment-archive presets
    """
    from tasks.models.names import presets as all_presets

    found = all_presets()
    if json:
        screen.print_json(found)
        return
    rows = [
        (
            name,
            p.bilateral_weight,
            p.bilateral_xy_std_px,
            p.bilateral_rgb_std,
            p.gaussian_weight,
            p.gaussian_xy_std_px,
            p.iterations,
        )
        for name, p in found.items()
    ]
    screen.print_table(["preset", "w1", "xy", "rgb", "w2", "xy2", "iterations"], rows)
