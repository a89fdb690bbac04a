"""What was typed and is no command: one sentence that names the culprit and, where one is near, the right option."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import cyclopts
from cyclopts import App, CycloptsError


def sentence(error: CycloptsError, tokens: Sequence[str], app: App, command: str) -> str:
    """The sentence for a person. tokens: the command line; app, command: what was asked for, and its name."""
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        return _too_many(error.unused_tokens[0], tokens, app, command)
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        used = error.keyword or next((token.keyword for token in error.argument.tokens if token.keyword), None)
        if used is not None:
            # `prepare PATH --check`: the one option that looks like a switch and takes what people put before it
            before = tokens[-2] if used == tokens[-1] == "--check" and len(tokens) > 1 else command
            meant = "" if before in command or before.startswith("-") else f" Did you mean {used} {before}?"
            return f"{used} needs a value.{meant}"
        return f"{_name(error.argument)} must be given."
    if isinstance(error, cyclopts.RepeatArgumentError):
        return f"{error.token.keyword} is given twice: give it once."
    if isinstance(error, cyclopts.CoercionError) and error.token is not None and error.msg is None:
        name = error.token.keyword or (_name(error.argument) if error.argument is not None else "A value")
        return _no_such_value(name, error.token.value, error.target_type, error.argument)
    if isinstance(error, cyclopts.ValidationError) and error.argument is not None:
        name = next((token.keyword for token in error.argument.tokens if token.keyword), _name(error.argument))
        return f"{name} must be {error.exception_message}, not {error.argument.value}."
    if isinstance(error, cyclopts.UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        # Without the dashes, which make everything alike
        options = {name.lstrip("-"): name for argument in _arguments(app) for name in _spellings(argument)}
        near = difflib.get_close_matches(typed.lstrip("-"), options, n=1, cutoff=0.7)
        if near:
            return f"There is no option {typed}. Did you mean {options[near[0]]}?"
        by_position = [_name(argument) for argument in _arguments(app) if argument.index is not None]
        if difflib.get_close_matches(typed.lstrip("-").upper(), by_position, n=1, cutoff=0.7):
            return f"There is no option {typed}: it is given by its place, {command} {' '.join(by_position)}."
        return f"There is no option {typed}."
    if isinstance(error, cyclopts.UnknownCommandError) and error.unused_tokens:
        typed, known = error.unused_tokens[0], [name for name in app if not name.startswith("-")]
        near = difflib.get_close_matches(typed, known, n=1, cutoff=0.6)
        if near:
            return f'There is no command {typed}. Did you mean "{near[0]}"?'
        # A list of commands, such as `weights`, is short enough to be named
        if not command:
            return f"There is no command {typed}."
        there = _listed([f"{command} {name}" for name in known], "and")
        return f"There is no command {command} {typed}; there {'is' if len(known) == 1 else 'are'} {there}."
    return " ".join(str(error).split())


def _too_many(token: str, tokens: Sequence[str], app: App, command: str) -> str:
    """A word that nothing takes: the value of an option that has none, or one argument too many."""
    arguments = list(_arguments(app))
    before = tokens[tokens.index(token) - 1] if token in tokens[1:] else ""
    for argument in arguments:
        if before.startswith("-") and before in _spellings(argument) and _is_switch(argument):
            return _no_value(before, token, argument)
    names = [_name(argument) for argument in arguments if argument.index is not None]
    if not names:
        return f"{command} takes no arguments: {token!r} is one too many."
    blanks = " A path with blanks needs quotes."
    return f"{command} takes {_listed(names, 'and')}: {token!r} is one too many.{blanks}"


def _no_such_value(name: str, value: str, kind: Any, argument: Any) -> str:
    kinds = [kind, *typing.get_args(kind)] if typing.get_origin(kind) in (typing.Union, types.UnionType) else [kind]
    for each in kinds:
        if typing.get_origin(each) is Literal:
            choices = [str(choice) for choice in typing.get_args(each)]
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
            meant = f" Did you mean {near[0]}?" if near else ""
            return f"{name} must be {_listed(choices, 'or')}, not {value!r}.{meant}"
    if bool in kinds:
        return _no_value(name, value, argument)
    words = {int: "a whole number", float: "a number"}
    told = next((words[each] for each in kinds if each in words), "something else")
    return f"{name} must be {told}, not {value!r}."


def _listed(words: Sequence[str], last: str) -> str:
    """a, b and c."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def _no_value(name: str, value: str, argument: Any) -> str:
    """For an option that is there or not."""
    off = next((n for n in (argument.negatives if argument is not None else ()) if n != name), None)
    remedy = f" To turn it off: {off}." if off else ""
    return f"{name} takes no value: {value!r} is one too many.{remedy}"


def _arguments(app: App) -> Iterator[Any]:
    """What a command takes; nothing where it is a list of commands."""
    if app.default_command is not None:
        yield from app.assemble_argument_collection()


def _spellings(argument: Any) -> tuple[str, ...]:
    return (*argument.names, *argument.negatives)


def _is_switch(argument: Any) -> bool:
    return bool(argument.token_count()[0] == 0)


def _name(argument: Any) -> str:
    """OUTPUT for what is given by position, --model for an option."""
    return str(argument.name) if str(argument.name).startswith("-") else str(argument.name).upper()
