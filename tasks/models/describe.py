"""The first card of an ONNX file, from what its graph says and what a person adds."""

from pathlib import Path

from segcore.datasets.class_lists import decode_text
from segcore.datasets.label_set import read_classes
from segcore.models import onnx_file
from segcore.models.card import ONNX, ModelCard
from segcore.models.checkpoint import CARD_FILE, ONNX_FILE
from segcore.models.preprocessing import BY_RANGE
from segcore.voc import MOST_BYTE_CLASSES
from tasks.errors import JobError


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

    classes: names by label, separated by commas, or the path of a file that `read_classes` reads. preprocessing: one of
    `BY_RANGE`; others are written into the card by hand. Raises JobError: a file that is no such model, everything that
    is missing, a card that is there.
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
        if preprocessing not in BY_RANGE:
            questions.append(f"what its pixels are: --preprocessing {', '.join(BY_RANGE)}")
        if questions:
            raise ValueError(f"{path} does not say {'; nor '.join(questions)}.")
        assert classes is not None and preprocessing is not None
        names, colours = _class_names(classes, wide=(ends.classes or 0) > MOST_BYTE_CLASSES)
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
            preprocessing=BY_RANGE[preprocessing],
            options=options,
            training_split=training_split,
            convention="areas",
            colours=colours,
        )
        card_path.write_text(card.to_json(), encoding="utf-8")
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    return f"{card_path} describes {path.name}: {len(names)} classes; --model {path} takes it."


def _class_names(given: str, wide: bool) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names by label, of a file or separated by commas, and the colours that the file has; void keeps its number, since
    a network may score it."""
    if Path(given).is_file():
        found = read_classes(decode_text(Path(given).read_bytes()), Path(given).name, wide=wide)
    else:
        found = read_classes("\n".join(part.strip() for part in given.split(",")), "--classes", wide=wide)
    names = list(found.classes)
    for number in found.void_values:
        names += [f"unused {k}" for k in range(len(names), number + 1)]
        names[number] = "void"
    colours = tuple(found.colours) if found.has_colours and len(found.colours) == len(names) else ()
    return tuple(names), colours
