"""`make default-model`: trains the model that ships with the project, and puts it in its place."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="default-model")


@app.default
def main(
    data: Annotated[Path, Parameter(help="Folder voc2012 with ImageSets, JPEGImages and small/.")],
    work: Annotated[Path, Parameter(help="Folder for the checkpoint; a second call goes on from there.")],
    model: Annotated[Path | None, Parameter(help="Model directory to write at the end.")] = None,
    minutes: Annotated[float, Parameter(help="Wall time of the whole training.")] = 90,
    threads: Annotated[int, Parameter(help="Threads of the network.")] = 2,
    commit: Annotated[str, Parameter(help="Written into the card.")] = "",
    score: Annotated[bool, Parameter(help="Score the model on val; --no-score leaves it.")] = True,
    train: Annotated[bool, Parameter(help="--no-train writes the model from the checkpoint as it is.")] = True,
) -> None:
    """Train the default model within a budget of time, and write it as a model directory with its score."""
    from tasks.training import default_model

    checkpoint = default_model.train(data, work, minutes, num_threads=threads) if train else work / "checkpoint.pt"
    if model is not None:
        for name, value in default_model.finish(checkpoint, model, data, commit, score=score).items():
            print(f"{name:<45} {value:g}")


if __name__ == "__main__":
    app()
