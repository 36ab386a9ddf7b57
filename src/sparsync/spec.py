"""Names with parameters: ``fda:monitor=sketch,threshold=2`` becomes a validated object.

Strategies, models, datasets, partitions, optimisers and schedules are all chosen this way, on the command line and in
experiment files alike. A registry maps the name to a class or function; its *keyword-only* parameters are what a user
may set, its positional ones are supplied by the program. Unknown names and parameters are errors that list the valid
ones.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from sparsync.errors import UsageError

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def config(cls: type[T]) -> type[T]:
    """Make a class what a user chooses: a pydantic dataclass, frozen, keywords only, unknown names refused."""
    made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    init = made.__init__

    @functools.wraps(init)
    def keywords_only(self: Any, **given: Any) -> None:  # kw_only does not reach fields declared with Field(...)
        try:
            init(self, **given)
        except ValidationError as error:
            raise UsageError(f"{cls.__name__}: {explain(error)}") from None

    made.__init__ = keywords_only
    return cast("type[T]", made)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: a name and the parameters given with it, still text."""

    name: str
    parameters: Mapping[str, str]

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.name}:{given}" if given else self.name


def _split(text: str, separator: str) -> Iterator[str]:
    """Split at separators that stand outside parentheses."""
    depth, start = 0, 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == separator and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def parse(text: str) -> Spec:
    """Parse ``name`` or ``name:key=value,key=value``. Commas inside parentheses belong to a value.

    Raises
    ------
    UsageError
        If the text has no name, a part without ``=``, or a parameter twice.
    """
    name, colon, rest = text.strip().partition(":")
    parameters: dict[str, str] = {}
    for part in _split(rest, ",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"spec {text!r}: expected name:key=value,key=value, but {part.strip()!r} is no key=value")
        if key in parameters:
            raise UsageError(f"spec {text!r}: {key} is given twice; keep one")
        parameters[key] = value
    if not name.strip():
        raise UsageError(f"spec {text!r}: the name is missing; expected name:key=value,key=value")
    return Spec(name.strip(), parameters)


_BRANCH = re.compile(r"(function-|constrained-|list\[|literal\[|str$)")  # a member of a union, as pydantic calls it


def explain(error: ValidationError) -> str:
    """Pydantic's complaints as one line: every key, what was wrong with it, and the value given."""
    parts = []
    for item in error.errors():
        key = ".".join(str(piece) for piece in item["loc"] if not _BRANCH.match(str(piece)))
        message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        shown = item["type"] not in ("value_error", "missing", "missing_keyword_only_argument")
        parts.append((f"{key}: " if key else "") + message + (f", got {item['input']!r}" if shown else ""))
    return "; ".join(dict.fromkeys(parts))


def unknown(kind: str, name: str, valid: list[str]) -> UsageError:
    """Return the error for a name that is not among the valid ones, with the nearest of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(valid)}")


@dataclass(frozen=True)
class Parameter:
    """One thing that a user may set: its name, type and default, as ``sparsync list`` shows them."""

    name: str
    annotation: Any
    default: Any
    required: bool

    def __str__(self) -> str:
        return f"{self.name} (required)" if self.required else f"{self.name}={_shown(self.default)}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered class or function, with the one-line summary of its docstring."""

    name: str
    factory: Callable[..., T]

    @property
    def summary(self) -> str:
        lines = (inspect.getdoc(self.factory) or "").splitlines()
        return lines[0] if lines else ""

    @property
    def parameters(self) -> list[Parameter]:
        hints = typing.get_type_hints(self.factory, include_extras=True)
        found = []
        for parameter in inspect.signature(self.factory).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            default = parameter.default
            if isinstance(default, FieldInfo):
                default = default.get_default(call_default_factory=True)
            required = default is parameter.empty or repr(default) == "PydanticUndefined"
            found.append(Parameter(parameter.name, hints.get(parameter.name, Any), default, required))
        return found


class Registry(Generic[T]):
    """The one door for new strategies, models, datasets, partitions, optimisers and schedules of a kind.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, for messages: ``"strategy"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry[T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Any]:
        """Register the decorated class or function under a name; its first docstring line is its summary."""

        def door(factory: Callable[..., Any]) -> Any:
            if name in self.entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self.entries[name] = Entry(name, factory)
            return factory

        return door

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self.entries:
            raise unknown(self.kind, name, sorted(self.entries))
        return self.entries[name]

    def build(self, spec: str | Spec, *context: Any) -> T:
        """Build what a spec asks for.

        Parameters
        ----------
        spec : str or Spec
            Name and parameters.
        *context
            Positional arguments that the program supplies.

        Raises
        ------
        UsageError
            If the name or a parameter is unknown, or a value has the wrong type or range.
        """
        entry, given = self._asked(spec)
        if inspect.isclass(entry.factory):  # a `config`, which checks itself
            try:
                return entry.factory(*context, **given)
            except UsageError as error:
                said = str(error).removeprefix(f"{entry.factory.__name__}: ")
                raise UsageError(f"{self.kind} {entry.name!r}: {said}") from None
        return entry.factory(*context, **self._validated(entry, given))

    def check(self, spec: str | Spec) -> Entry[T]:
        """Return the entry of a spec whose function, which is not called, would be given what it expects.

        Raises
        ------
        UsageError
            As `build`.
        """
        entry, given = self._asked(spec)
        self._validated(entry, given)
        return entry

    def _asked(self, spec: str | Spec) -> tuple[Entry[T], dict[str, Any]]:
        parsed = parse(spec) if isinstance(spec, str) else spec
        entry = self[parsed.name]
        known = {parameter.name: parameter for parameter in entry.parameters}
        for key in parsed.parameters:
            if key not in known:
                valid = ", ".join(known) or "none at all"
                raise UsageError(f"{self.kind} {parsed.name!r} has no parameter {key!r}: its parameters are {valid}")
        return entry, {key: None if value.lower() == "none" else value for key, value in parsed.parameters.items()}

    def _validated(self, entry: Entry[T], given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return _validated(entry, given)
        except ValidationError as error:
            raise UsageError(f"{self.kind} {entry.name!r}: {explain(error)}") from None


def _validated(entry: Entry[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Text to the types that a function's keyword-only parameters are annotated with."""
    fields: dict[str, Any] = {
        parameter.name: (parameter.annotation, ... if parameter.required else parameter.default)
        for parameter in entry.parameters
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
    values = model(**given)
    return {name: getattr(values, name) for name in fields}


def imported(spec: str, registry: Registry[Any]) -> Callable[..., object] | None:
    """Return the function that ``package.module:function`` names; None if the spec is the registry's to build.

    Raises
    ------
    UsageError
        If it names a module or function that does not exist.
    """
    place, _, name = spec.strip().partition(":")
    if place in registry.entries or not ("." in place or name.isidentifier()):
        return None
    what = f"{registry.kind} {spec!r}"
    if not name.isidentifier():
        raise UsageError(f"{what}: expected package.module:function, but no function is named after the colon")
    try:
        module = importlib.import_module(place)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(
            f"{what}: cannot import {place!r} ({error}); choose one of {', '.join(sorted(registry.entries))}, or put "
            "the module's folder on PYTHONPATH"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what}: module {place!r} has no function {name!r}; define it there")
    made: Callable[..., object] = function
    return made
