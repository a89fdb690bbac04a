"""Console commands about weights: `segment-archive weights import`, `weights pull`, `weights list`, and `models`."""

import sys
from typing import Annotated, NoReturn

import typer

weights_app = typer.Typer(no_args_is_help=True, help="Bring published weights: import a file, or pull one.")


@weights_app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(help="Caffe .caffemodel, PyTorch .pth, or .safetensors.")],
    model: Annotated[str, typer.Option(help="Model that it becomes; see `segment-archive models`.")],
    name: Annotated[str | None, typer.Option(help="What --model finds it under; the model's name by default.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names by label, separated by commas.")] = None,
    training_split: Annotated[
        str | None, typer.Option(help="What the weights saw, such as voc2012-train_aug; guards the evaluation.")
    ] = None,
    as_init: Annotated[bool, typer.Option("--as-init", help="Take the trunk only, to start training from.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of weights of that name.")] = False,
) -> None:
    """Import weights that others published; their layout is recognised."""
    from tasks.models import weights

    names = None if classes is None else [part.strip() for part in classes.split(",")]
    try:
        told = weights.import_weights(
            file,
            model,
            name=name,
            classes=names,
            training_split=training_split,
            as_init=as_init,
            replace=replace,
        )
    except (ValueError, OSError) as error:
        _fail(error)
    print(told)


@weights_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="Entry of the catalogue; see `segment-archive weights list`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Fetch it again.")] = False,
) -> None:
    """Fetch, check and import published weights; continues a download that was interrupted."""
    from tasks.models import weights

    def show(done: int, total: int | None) -> None:
        share = f"{100 * done / total:.0f} %" if total else f"{done / 1e6:.0f} MB"
        print(f"\r{name}: {share}", end="", file=sys.stderr, flush=True)

    try:
        told = weights.pull(name, replace=replace, progress=show if sys.stderr.isatty() else None)
    except (ValueError, OSError) as error:
        _fail(error)
    print(told)


@weights_app.command("list")
def list_catalogue() -> None:
    """What can be pulled: name, training split, score, licence, and whether we have fetched it ourselves."""
    from tasks.models import weights

    for entry in weights.read_catalogue().values():
        checked = "verified" if entry.verified else "unverified"
        how = "by hand" if entry.manual else "pull"
        print(f"{entry.name}\n    {entry.trained_on}; {entry.score or 'initialisation'}; {how}, {checked}")
        print(f"    licence: {entry.licence}; read in {entry.read_in}")


def models() -> None:
    """List the models: parameters at 21 classes, published mean IoU on VOC 2012, weights at hand."""
    from tasks.models import weights

    rows = weights.list_models()
    width = max(len(row.name) for row in rows)
    print(f"{'model':<{width}}  {'parameters':>11}  {'weights':<24}  published")
    for row in rows:
        print(f"{row.name:<{width}}  {row.parameters:>11,}  {row.weights:<24}  {row.published}".rstrip())


def mount(app: typer.Typer) -> None:
    """Add these commands to the console command."""
    app.add_typer(weights_app, name="weights")
    app.command("models")(models)


def _fail(error: Exception) -> NoReturn:
    print(f"segment-archive: {error}", file=sys.stderr)
    raise typer.Exit(1)
