"""The one parser's workings: errors with the nearest names, the text of ``?``, and what Tab offers."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from gimlet_lab.errors import UnknownNameError, UsageError

#: Names of a kind, by the metavar of the argument that takes one: ``RUN``, ``PLAN``, ``DEVICE``, …
Names = Callable[[str], Iterable[str]]


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises :class:`UsageError` and never prints or exits."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(add_help=False, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"needs {missing}"
        raise UsageError(f"{self.prog}: {message}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = action.metavar if isinstance(action.metavar, str) else action.dest
            raise UnknownNameError(kind.lower(), str(value), [str(choice) for choice in action.choices])

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words of one line.

        Raises
        ------
        GimletError
            In one line: what is wrong, and what is near.
        """
        options, extra = self.parse_known_args(list(words))
        if extra:
            used = self.commands().get(getattr(options, "command", None) or "", self)
            wrong = next((word for word in extra if word.startswith("-")), None)
            if wrong is None:
                used.error(f"does not take {extra[0]!r}")
            given = wrong.partition("=")[0]
            near = difflib.get_close_matches(given, used.options(), n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {' '.join(used.options())}"
            used.error(
                f"no option {given!r}; {hint}" if used.options() else f"takes no options, not {given!r}"
            )
        return options

    def options(self) -> list[str]:
        """The option strings, long ones where there are two."""
        return [action.option_strings[-1] for action in self._actions if action.option_strings]

    def commands(self) -> dict[str, Parser]:
        """The parsers of its commands, by name; empty for a command itself."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - argparse has no other way to ask
                return dict(action.choices)
        return {}

    def document(self, command: str | None = None) -> str:
        """The help text of everything or of one command."""
        return (self.commands()[command] if command else self).format_help()

    def complete(self, words: Sequence[str], word: str, names: Names) -> list[str]:
        """What could stand in the place of ``word``, after ``words``."""
        commands = self.commands()
        if commands:
            if not words:
                return _starting(commands, word)
            return commands[words[0]].complete(words[1:], word, names) if words[0] in commands else []
        flags = {flag: action for action in self._actions for flag in action.option_strings}
        if word.startswith("-"):
            return _starting(flags, word)
        if words and words[-1] in flags and flags[words[-1]].nargs != 0:
            return _starting(_values(flags[words[-1]], names), word)
        listed = next((flags[w] for w in reversed(words) if w in flags), None)
        if listed is not None and listed.nargs in ("+", "*"):
            return _starting(_values(listed, names), word)
        positionals = [action for action in self._actions if not action.option_strings]
        found = [value for action in positionals for value in _values(action, names)]
        return _starting(found or flags, word)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def _values(action: argparse.Action, names: Names) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    return list(names(action.metavar)) if isinstance(action.metavar, str) else []


def _starting(values: Iterable[str], word: str) -> list[str]:
    return sorted({value for value in values if value.startswith(word)})


def split(line: str) -> list[str]:
    """The words of a line, quotes understood.

    Raises
    ------
    UsageError
        If a quote is not closed.

    Examples
    --------
    >>> split("save 'my run' out.gimlet")
    ['save', 'my run', 'out.gimlet']
    """
    try:
        return shlex.split(line, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(f"gimlet: {str(error).lower()} in: {line.strip()}") from None


_UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


def count(text: str) -> int:
    """A number from 1.

    Examples
    --------
    >>> count("3")
    3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A time with its unit.

    Examples
    --------
    >>> seconds("250ms"), seconds("2s")
    (0.25, 2.0)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*([a-zµ]+)\s*", text)
    if match is None or match[2] not in _UNITS_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with its unit, like 250ms or 2s")
    try:
        return float(match[1]) * _UNITS_S[match[2]]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{match[1]!r} is not a number") from None


def rate(text: str) -> float:
    """Requests a second: ``10/s``, ``600/min``, ``36000/h``.

    Examples
    --------
    >>> rate("10/s"), rate("600/min")
    (10.0, 10.0)
    """
    return _per(text, {"s": 1.0, "min": 60.0, "h": 3600.0}, "requests in a time, like 10/s or 600/min")


def price(text: str) -> float:
    """Dollars an hour: ``40/h``.

    Examples
    --------
    >>> price("40/h"), price("$12.5/h")
    (40.0, 12.5)
    """
    return _per(text.removeprefix("$"), {"h": 1.0}, "dollars an hour, like 40/h")


def _per(text: str, spans: Mapping[str, float], wanted: str) -> float:
    amount, _, span = text.partition("/")
    try:
        value = float(amount) / spans[span.strip()]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def limits(text: str) -> dict[str, float]:
    """Service levels, in seconds.

    Examples
    --------
    >>> limits("ttft=250ms,latency=2s")
    {'ttft_s': 0.25, 'latency_s': 2.0}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=TIME, like ttft=250ms")
        if name not in ("ttft", "tpot", "latency"):
            raise UnknownNameError("service level", name, ["ttft", "tpot", "latency"])
        found[f"{name}_s"] = seconds(value)
    return found


def pair(text: str) -> tuple[str, str]:
    """``LEFT=RIGHT``.

    Examples
    --------
    >>> pair("prefill=cpu/0")
    ('prefill', 'cpu/0')
    """
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return left, right


def stretches(text: str) -> tuple[str, int]:
    """``MODEL=COUNT``.

    Examples
    --------
    >>> stretches("llm=4")
    ('llm', 4)
    """
    model, count = pair(text)
    if not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a model is taken apart into 1, 2, … stretches of layers")
    return model, int(count)
