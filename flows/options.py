"""Options of a command, derived from the model of its job: types, defaults, bounds and help have no second place.

A command takes a job; `options` puts in its place one option for each field. What a command adds is the order of its
arguments, spellings and headings. pydantic checks the values; what it finds is reported by the name of the option.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import annotated_types
from cyclopts import Group, Parameter
from docstring_parser import parse_from_object
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

_EMPTY = inspect.Parameter.empty

_NUMBERS = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}

PRINTING = Group("Printing", sort_key=1000)
"""Heading of what changes only what is printed."""


def flag(help: str, name: str | None = None, *, group: Group | str | None = None) -> Parameter:
    """An option without a value. name: spellings separated by spaces, where the parameter's own is not it."""
    return Parameter(
        name=None if name is None else name.split(), help=help, negative=(), show_default=False, group=group
    )


Json = Annotated[bool, flag("Print the result as JSON.", "--json", group=PRINTING)]
Quiet = Annotated[bool, flag("Print nothing but errors.", "--quiet -q", group=PRINTING)]


class UsageError(Exception):
    """What was typed is no command: one sentence, exit status 2."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One option: a field of a job, or of a dataclass in it."""

    path: str
    """Where it lies in the job, such as "inference.long_side_px"."""

    annotation: Any
    """Type, without bounds."""

    bounds: str
    """For a person, such as "33 to 16384"; empty where there are none."""

    default: Any
    """`inspect.Parameter.empty` where a value must be given."""

    help: str
    switch: bool = False
    """Whether it stands for a whole dataclass: False puts None in its place."""

    @property
    def keyword(self) -> str:
        """Its name as a parameter in Python."""
        return self.path.replace(".", "_")


@dataclasses.dataclass(frozen=True)
class Found:
    """The default of a field that a job needs and a command can find by itself."""

    told: str
    """What the help says of it."""

    find: Callable[[Mapping[str, Any]], Any]
    """From the values that were given, by path."""


def options(
    *,
    arguments: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    groups: Mapping[str, Iterable[str]] | None = None,
    without: Iterable[str] = (),
    found: Mapping[str, Found] | None = None,
    presets: Mapping[str, Callable[[], Iterable[str]]] | None = None,
    complete: Mapping[str, Callable[[], Iterable[str]]] | None = None,
    by_name: Mapping[str, Callable[[Any], str]] | None = None,
    words: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command, whose first parameter is a job, the options of that job.

    arguments: paths of the fields that are given by position, in this order.
    names: spellings by path, separated by spaces, where the field's own name is not enough: "--workers -w",
        "--with-sbd/--no-sbd".
    groups: paths by the heading of the help that they stand under; a path brings all that lies below it.
    without: paths that the console does not offer.
    found: defaults that the command finds.
    presets: names that a field which is a dataclass takes in its place; they get an option --<field>-preset.
    complete: names that a value may have, for the shell's completion.
    by_name: how a dataclass is named, by path of the fields that are given by such a name alone.
    words: help where a field means something narrower here.
    """
    order = tuple(arguments)
    left_out = frozenset(without)
    spellings, found, presets, complete = names or {}, found or {}, presets or {}, dict(complete or {})
    titles = {path: title for title, paths in (groups or {}).items() for path in paths}
    panels = {title: Group(title, sort_key=place) for place, title in enumerate(groups or {})}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        first, *others = inspect.signature(command, eval_str=True).parameters.values()
        job_type: type[BaseModel] = first.annotation
        fields = []
        for field in fields_of(job_type, named=frozenset(by_name or ())):
            if by_name and field.path in by_name:
                field = dataclasses.replace(field, default=by_name[field.path](field.default))
            if left_out.isdisjoint(_with_those_above(field.path)):
                fields.append(dataclasses.replace(field, help=(words or {}).get(field.path, field.help)))
                if field.switch and field.path in presets:
                    named = f"{field.path}.preset"
                    complete[named] = presets[field.path]
                    fields.append(Field(named, str | None, "", None, f"By name: {', '.join(presets[field.path]())}."))
        fields.sort(key=lambda field: order.index(field.path) if field.path in order else len(order))
        spelled = {f.path: tuple(spellings.get(f.path, _spelling(f.path)).split()) for f in fields}
        shown = {path: path.upper() if path in order else words[0] for path, words in spelled.items()}
        parameters = []
        for field in fields:
            title = next((titles[path] for path in _with_those_above(field.path) if path in titles), None)
            more: dict[str, Any] = {} if title is None else {"group": panels[title]}
            if field.path in complete:
                more["completer"] = _completer(complete[field.path])
            name = None if field.path in order else spelled[field.path]
            parameters.append(_parameter(field, name, found.get(field.path), more))
        paths = {field.keyword: field.path for field in fields}
        in_order = [p for p in (*parameters, *others) if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        with_names = [p for p in (*parameters, *others) if p.kind is not inspect.Parameter.POSITIONAL_ONLY]
        own_positions = [p.name for p in others if p.kind is inspect.Parameter.POSITIONAL_ONLY]

        def call(*texts: Any, **given: Any) -> Any:
            given |= dict(zip((p.name for p in in_order), texts, strict=False))
            own_texts = [given.pop(name) for name in own_positions if name in given]
            own = {p.name: given.pop(p.name) for p in others if p.name in given}
            # None that was typed, as "none", stands where it is another value than the default
            off = {f.path for f in fields if f.default not in (None, _EMPTY) and type(None) in _kinds(f.annotation)}
            values = {paths[k]: value for k, value in given.items() if value is not None or paths[k] in off}
            for field in fields:
                if values.get(field.path) is not None:
                    values[field.path] = _value(field, values[field.path], shown[field.path])
            for path, default in found.items():
                if path not in values:
                    values[path] = default.find(values)
            return command(make(job_type, values, shown), *own_texts, **own)

        signature = inspect.Signature([*in_order, *with_names])
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        return call

    return decorate


def make(job_type: type[BaseModel], values: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> Any:
    """The job of values by path. Raises UsageError, which names the option as `shown` spells its path."""
    shown = shown or {}
    switches = {field.path for field in fields_of(job_type) if field.switch}
    off = {path for path in switches if values.get(path) is False}
    given: dict[str, Any] = dict.fromkeys(off)
    for path, value in values.items():
        if path in switches:
            continue
        place, above = given, path.rpartition(".")[0]
        if above in off:
            raise UsageError(f"--no-{_hyphens(above)} and {shown.get(path, path)} exclude each other.")
        for step in path.split(".")[:-1]:
            place = place.setdefault(step, {})
        place[path.split(".")[-1]] = value
    try:
        return job_type.model_validate(given)
    except ValidationError as error:
        # A preset stands in the place of a whole dataclass, whose path is then the one that pydantic names
        by_preset = {path: shown.get(f"{path}.preset", path) for path in switches if f"{path}.preset" in values}
        raise UsageError(sentence(error, {**shown, **by_preset})) from None


def sentence(error: ValidationError, shown: Mapping[str, str] | None = None) -> str:
    """What pydantic found first, with the name of the option."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    name = next((shown[above] for above in _with_those_above(path) if above in (shown or {})), path) if shown else path
    words = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "missing":
        return f"{name} must be given."
    if first["type"] in _NUMBERS:
        return f"{name} must be {_NUMBERS[first['type']]}, not {first['input']!r}."
    if first["type"] == "value_error":
        words = words if words.endswith("?") else f"{words}."
        return f"{name}: {words}" if name else words
    return f"{name}: {words[0].lower()}{words[1:]} (given: {first['input']!r})."


def fields_of(job: Any, above: str = "", named: frozenset[str] = frozenset()) -> Iterator[Field]:
    """Every field of a pydantic model, or of the instance of a dataclass; those of dataclasses in it in their place.

    named: paths of dataclasses that are one field.
    """
    for name, annotation, default, words in _declared(job):
        kind, bounds = _bounds(annotation)
        inner: Any = next((t for t in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(t)), None)
        if inner is None or not isinstance(default, inner) or f"{above}{name}" in named:
            yield Field(f"{above}{name}", kind, bounds, default, words)
            continue
        if kind is not inner:
            yield Field(f"{above}{name}", bool, "", True, words.partition("; None")[0], switch=True)
        if not above.count("."):  # Deeper ones are for Python and for Prefect's form
            yield from fields_of(default, f"{above}{name}.")


def _declared(job: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, annotation, default and description of each field."""
    if dataclasses.is_dataclass(job):
        described = {p.arg_name: p.description or "" for p in parse_from_object(type(job)).params}
        hints = typing.get_type_hints(type(job), include_extras=True)
        for field in dataclasses.fields(job):
            yield field.name, hints[field.name], getattr(job, field.name), described.get(field.name, "")
        return
    for name, info in job.model_fields.items():
        annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        default = _EMPTY if info.default is PydanticUndefined else info.default
        yield name, annotation, default, info.description or ""


def _bounds(annotation: Any) -> tuple[Any, str]:
    """The type without its bounds, and the bounds for a person."""
    if typing.get_origin(annotation) is Annotated:
        kind, *notes = typing.get_args(annotation)
        inner, words = _bounds(kind)
        return inner, words or _range(notes)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [_bounds(part) for part in typing.get_args(annotation)]
        return typing.Union[tuple(kind for kind, _ in parts)], next((w for _, w in parts if w), "")  # noqa: UP007
    return annotation, ""


def _range(notes: Iterable[Any]) -> str:
    low = high = None
    for note in notes:
        if isinstance(note, annotated_types.GroupedMetadata):
            return _range(list(note))
        if isinstance(note, annotated_types.Ge | annotated_types.Gt):
            low = f"{note.ge}" if isinstance(note, annotated_types.Ge) else f"more than {note.gt}"
        elif isinstance(note, annotated_types.Le | annotated_types.Lt):
            high = f"{note.le}" if isinstance(note, annotated_types.Le) else f"less than {note.lt}"
    if low is None:
        return "" if high is None else f"up to {high}"
    return f"{low} to {high}" if high is not None else low if low.startswith("more") else f"{low} or more"


def _parameter(
    field: Field, name: tuple[str, ...] | None, found: Found | None, more: dict[str, Any]
) -> inspect.Parameter:
    """The parameter that cyclopts reads. name: None for one that is given by position."""
    kind, default, off = _typed(field.annotation), field.default, ""
    if name is not None and "/" in name[0]:
        on, _, off = name[0].partition("/")
        name = (on, *name[1:])
    help_ = _first_sentence(field.help)
    if field.bounds:
        help_ = f"{help_} [range: {field.bounds}]"
    more |= {"help": help_.strip(), "negative": ()}
    if found is not None:
        default, kind, more["show_default"] = None, kind | None, found.told or False
    elif default is not _EMPTY and default is not None and kind is not bool:
        more["show_default"], kind = _text(default) or False, kind | None
        default = None if not isinstance(default, str | int | float) else default
    if kind is bool:
        more["show_default"] = False
        if default is True and name is not None:
            more["negative"] = off or f"--no-{name[0].removeprefix('--')}"
    position = inspect.Parameter.POSITIONAL_ONLY if name is None else inspect.Parameter.KEYWORD_ONLY
    if name is not None:
        more["name"] = name
    annotation: Any = Annotated[kind, Parameter(**more)]
    return inspect.Parameter(field.keyword, position, default=default, annotation=annotation)


def _typed(annotation: Any) -> Any:
    """The type that the console reads; pydantic makes the rest of a text."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [_typed(part) for part in parts if part is not type(None)]
        return typing.Union[(*kinds, None)]
    if annotation in (bool, int, float, str) or origin is Literal:
        return annotation
    if origin is dict or (origin is tuple and parts[0] is str):
        return list[str]
    return str


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union; of any other type nothing."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()


def _value(field: Field, value: Any, name: str) -> Any:
    """What pydantic reads, where one text or several stand for more: 0.5,1 and NAME=FILE."""
    kinds = [kind for kind in (field.annotation, *typing.get_args(field.annotation)) if kind is not type(None)]
    origins = {typing.get_origin(kind) for kind in kinds}
    if dict in origins:
        pairs = [text.partition("=") for text in value]
        for text, (key, _, file) in zip(value, pairs, strict=True):
            if not key or not file:
                raise UsageError(f"{name} {text} is not NAME=FILE, such as train=train.txt.")
        return {key: file for key, _, file in pairs}
    if tuple in origins and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _text(default: Any) -> str:
    if isinstance(default, tuple | list):
        return ",".join(_text(part) for part in default)
    if isinstance(default, float):
        return f"{default:.4g}"
    return str(getattr(default, "name", default))


def _first_sentence(text: str) -> str:
    """What a line of the help holds; docs/ and Prefect's form have the whole."""
    first, more, _ = " ".join(text.split()).partition(". ")
    return f"{first}." if more else first


def _spelling(path: str) -> str:
    """--long-side for inference.long_side_px, --crf-iterations for crf.iterations."""
    above, _, name = path.rpartition(".")
    name = name.removesuffix("_px")
    return f"--{_hyphens(f'{above}-{name}' if above and above != 'inference' else name)}"


def _hyphens(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")


def _with_those_above(path: str) -> list[str]:
    """a.b.c, a.b, a."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _completer(names: Callable[[], Iterable[str]]) -> Callable[[Any], list[str]]:
    return lambda context: list(names())
