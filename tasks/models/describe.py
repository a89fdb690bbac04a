"""The first card of an ONNX file, from what its graph says and what a person adds."""

from pathlib import Path

from segcore.models import onnx_file
from segcore.models.card import ONNX, ModelCard
from segcore.models.checkpoint import CARD_FILE, ONNX_FILE
from segcore.models.preprocessing import IMAGENET_RGB, Preprocessing
from tasks.errors import JobError

PREPROCESSINGS = {
    "imagenet": IMAGENET_RGB,
    "0..1": Preprocessing("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "-1..1": Preprocessing("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "0..255": Preprocessing("RGB", (0.0, 0.0, 0.0)),
}
"""Usual ones by the range that pixels are brought to; others are written into the card by hand."""


def describe_onnx(
    file: str,
    *,
    classes: str | None,
    preprocessing: str | None,
    stride: int = 32,
    probabilities: bool = False,
    output: str = "",
    training_split: str = "unknown",
) -> str:
    """Write the card beside an ONNX file; a sentence about what was made.

    classes: names by label, separated by commas, or the path of a text file with one a line. preprocessing: one of
    `PREPROCESSINGS`. Raises JobError: a file that is no such model, everything that is missing, a card that is there.
    """
    path = Path(file)
    try:
        if path.suffix != ".onnx" or not path.is_file():
            raise ValueError(f"There is no ONNX file at {path}: give the path of a file that ends in .onnx.")
        card_path = path.parent / CARD_FILE
        if card_path.exists():
            raise ValueError(f"{card_path} is there already: correct it by hand, or move it away.")
        content = path.read_bytes()
        parameters = onnx_file.check(content, str(path))
        ends = onnx_file.ends(onnx_file.open_session(content, str(path)), str(path), output)
        questions = []
        if classes is None:
            number = f"{ends.classes:,} classes" if ends.classes else "its classes"
            questions.append(f"what {number} are called: --classes with their names by label, or a file of them")
        if preprocessing not in PREPROCESSINGS:
            questions.append(f"what its pixels are: --preprocessing {', '.join(PREPROCESSINGS)}")
        if questions:
            raise ValueError(f"{path} does not say {'; nor '.join(questions)}.")
        assert classes is not None and preprocessing is not None
        text = Path(classes).read_text("utf-8") if Path(classes).is_file() else classes.replace(",", "\n")
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if ends.classes is not None and len(names) != ends.classes:
            raise ValueError(f"{path} scores {ends.classes} classes, but {len(names)} names were given.")
        options = {
            "name": path.stem if path.name != ONNX_FILE else path.absolute().parent.name,
            "stride": stride,
            "output": ends.output,
            "probabilities": probabilities,
            "parameters": parameters,
        }
        card = ModelCard(
            variant=ONNX,
            classes=names,
            preprocessing=PREPROCESSINGS[preprocessing],
            options=options,
            training_split=training_split,
            convention="areas",
        )
        card_path.write_text(card.to_json(), encoding="utf-8")
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    return f"{card_path} describes {path.name}: {len(names)} classes; --model {path} takes it."
