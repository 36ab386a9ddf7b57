"""Names with parameters: ``fda:monitor=sketch,threshold=2`` becomes a validated object.

Strategies, models, datasets, partitions, optimisers and schedules are all chosen this way, on the command line and in
experiment files alike. A registry maps the name to a class or function; its *keyword-only* parameters are what a user
may set, its positional ones are supplied by the program. Unknown names and parameters are errors that list the valid
ones. Inside a spec, what has a name takes its own parameters in parentheses: ``fedavg:uplink=topk(0.05)+q8(block=64)``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import traceback
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sparsync.errors import SparsyncError, UsageError, described

T = TypeVar("T")

MOST = 10**9
"""The largest count that a setting may have: products of two fit into 64 bits."""

Count = Annotated[int, Field(ge=1, le=MOST)]
"""How many of something, at least one."""

Natural = Annotated[int, Field(ge=0, le=MOST)]
"""How many of something, perhaps none."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def config(cls: type[T]) -> type[T]:
    """Make a class what a user chooses: a pydantic dataclass, frozen, keywords only, unknown names refused."""
    made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    init = made.__init__

    @functools.wraps(init)
    def keywords_only(self: Any, *unnamed: Any, **given: Any) -> None:  # kw_only does not reach Field(...)
        if unnamed:
            raise UsageError(f"{cls.__name__}: {shown(unnamed[0])} is a positional argument; give it as NAME=VALUE")
        try:
            init(self, **given)
        except ValidationError as error:
            raise UsageError(f"{cls.__name__}: {explain(error)}") from None

    made.__init__ = keywords_only
    made.__setattr__ = made.__delattr__ = unchangeable
    return cast("type[T]", made)


def unchangeable(settings: object, name: str, *_: object) -> None:
    """Refuse to set or delete a setting: the ``__setattr__`` and ``__delattr__`` of settings.

    Raises
    ------
    UsageError
        Always.
    """
    raise UsageError(f"{type(settings).__name__}: {name} cannot be changed; make another with {name}=...")


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


_NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of pairs, ends of lines
_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # controls of the direction of writing


def showable(label: str) -> bool:
    """Whether a label is text on one line, without control characters."""
    return bool(label.strip()) and not any(
        unicodedata.category(c) in _NOT_SHOWN or unicodedata.bidirectional(c) in _REORDERING for c in label
    )


def check_labels(labels: Iterable[str], kind: str = "label") -> None:
    """Refuse labels, or names of another kind, that cannot be shown, or told apart where they are.

    Raises
    ------
    UsageError
        If so.
    """
    seen: dict[str, str] = {}
    for label in labels:
        if not showable(label):
            raise UsageError(f"{kind} {label!a:.120}: expected text on one line, without control characters")
        visible = "".join(c for c in label if unicodedata.category(c) != "Cf")
        visible = " ".join(unicodedata.normalize("NFC", visible).split())
        if visible in seen:
            raise UsageError(f"{kind}s {seen[visible]!a:.120} and {label!a:.120} look alike; change one")
        seen[visible] = label


_BRANCH = re.compile(r"(function-|constrained-|list\[|literal\[|str$)")  # a member of a union, as pydantic calls it
_SHOULD = "Input should be "


def explain(error: ValidationError) -> str:
    """Pydantic's complaints as one line: every key, what was wrong with it, and the value given."""
    found: dict[str, list[ErrorDetails]] = {}
    for item in error.errors():
        key = ".".join(str(piece) for piece in item["loc"] if not _BRANCH.match(str(piece)))
        found.setdefault(key, []).append(item)
    parts = []
    for key, items in found.items():
        if key and any(other.startswith(f"{key}.") for other in found):  # one branch of a union fits better
            continue
        messages = list(dict.fromkeys(re.sub("^(Value error|Assertion failed), ", "", item["msg"]) for item in items))
        said = "; ".join(messages)
        if len(messages) > 1 and all(message.startswith(_SHOULD) for message in messages):
            said = "expected " + " or ".join(_choice(message) for message in messages)
        given = items[0]["type"] not in ("value_error", "missing", "missing_keyword_only_argument")
        parts.append((f"{key}: " if key else "") + said + (f", got {shown(items[0]['input'])}" if given else ""))
    return "; ".join(parts)


def _choice(message: str) -> str:
    """What one complaint of a union says would be right: ``an integer``, ``a number greater than 0``."""
    choice = re.sub(r", (unable|got) .*", "", message.removeprefix(_SHOULD))
    choice = re.sub(r"\ba valid (?=[aeiou])", "an ", choice).replace("a valid ", "a ")
    return re.sub("^(?=greater|less)", "a number ", choice)


def shown(value: object, most: int = 120) -> str:
    """Return a value as a message shows it: its beginning, if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes; nested too deeply
        return f"a very long {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def unknown(kind: str, name: str, valid: list[str]) -> UsageError:
    """Return the error for a name that is not among the valid ones, with the nearest of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {shown(name)}: {hint}choose one of {', '.join(valid)}")


@dataclass(frozen=True)
class Parameter:
    """One thing that a user may set: its name, type and default, as ``sparsync list`` shows them."""

    name: str
    annotation: Any
    default: Any
    required: bool
    meaning: str = ""

    def __str__(self) -> str:
        return f"{self.name} (required)" if self.required else f"{self.name}={default_text(self.default)}"


def default_text(value: object) -> str:
    """Return a default as it is shown and can be given in a spec."""
    if isinstance(value, dict) or _is_config(type(value)):  # a table
        return ""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A class or function, registered or the user's own: its parameters, and what its docstring says."""

    name: str
    factory: Callable[..., T]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.text.partition("\n")[0]

    @property
    def text(self) -> str:
        """The docstring up to the first of its sections."""
        return _HEADING.split(_documentation(self.factory), maxsplit=1)[0].strip()

    @property
    def parameters(self) -> list[Parameter]:
        """What a user may set: what is keyword-only."""
        return [parameter for kind, parameter in self._all if kind is inspect.Parameter.KEYWORD_ONLY]

    def by_name(self, context: int) -> list[Parameter]:
        """All that can be given by name, after the first positional ones, which the program supplies."""
        places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        supplied = [parameter for kind, parameter in self._all if kind in places][:context]
        names = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [parameter for kind, parameter in self._all if kind in names and parameter not in supplied]

    @property
    def meanings(self) -> dict[str, str]:
        """What the docstring says of each parameter; a class also knows what its bases say."""
        classes = inspect.getmro(self.factory) if inspect.isclass(self.factory) else (self.factory,)
        found: dict[str, str] = {}
        for documented in reversed(classes):
            found |= _described(_documentation(documented))
        return found

    @property
    def _all(self) -> list[tuple[Any, Parameter]]:
        hints = _hints(self.factory)
        found = []
        for parameter in inspect.signature(self.factory).parameters.values():
            default = parameter.default
            if repr(default) == "<factory>":  # of a pydantic model
                default = self.factory.__pydantic_fields__[parameter.name]  # type: ignore[attr-defined]
            if isinstance(default, FieldInfo):
                default = default.get_default(call_default_factory=True)
            required = default is parameter.empty or repr(default) == "PydanticUndefined"
            guess = type(default) if type(default) in (bool, int, float, str) else Any  # where nothing is annotated
            annotation = hints.get(parameter.name, guess)
            found.append((parameter.kind, Parameter(parameter.name, annotation, default, required)))
        return found


def _known(what: str, given: Mapping[str, str], parameters: list[Parameter]) -> dict[str, str | None]:
    """Return what is given, ``none`` as None, if there are such parameters."""
    names = [parameter.name for parameter in parameters]
    for key in given:
        if key not in names:
            valid = ", ".join(names) or "none at all"
            raise UsageError(f"{what} has no parameter {shown(key)}: its parameters are {valid}")
    return {key: None if value.lower() == "none" else value for key, value in given.items()}


def _validated(what: str, given: Mapping[str, str | None], parameters: list[Parameter]) -> dict[str, Any]:
    """Text to the types that a function's parameters are annotated with."""
    fields: dict[str, Any] = {
        parameter.name: (parameter.annotation, ... if parameter.required else parameter.default)
        for parameter in parameters
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
    try:
        values = model(**given)
    except ValidationError as error:
        raise UsageError(f"{what}: {explain(error)}") from None
    return {name: getattr(values, name) for name in fields}


def _is_config(factory: object) -> bool:
    return hasattr(factory, "__pydantic_fields__")


def _hints(factory: Any) -> dict[str, Any]:
    """Annotations of a function, a `config` or the constructor of a class; none where they cannot be resolved."""
    plain = inspect.isclass(factory) and not _is_config(factory)
    try:
        return typing.get_type_hints(factory.__init__ if plain else factory, include_extras=True)
    except (NameError, TypeError, AttributeError):  # of the user's own, such as names that only a type checker imports
        return {}


_HEADING = re.compile(r"^(\w[\w ]*)\n-+$", re.MULTILINE)


def _documentation(documented: object) -> str:
    return inspect.cleandoc(getattr(documented, "__doc__", None) or "")


def _described(text: str) -> dict[str, str]:
    """What the sections ``Attributes`` and ``Parameters`` of a docstring say of each name."""
    _, *pieces = _HEADING.split(text)
    found: dict[str, str] = {}
    for heading, body in zip(pieces[::2], pieces[1::2], strict=True):
        if heading in ("Attributes", "Parameters"):
            for names, meaning in re.findall(r"^(\S.*)\n((?:[ ]+\S.*\n?|\n(?=[ ]))*)", body, re.MULTILINE):
                said = " ".join(meaning.split())
                found |= dict.fromkeys(re.split(r",\s*", names.partition(" :")[0].strip()), said)
    return found


class Registry(Generic[T]):
    """The one door for new strategies, models, datasets, codecs and other things of a kind.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, for messages: ``"strategy"``.
    made : type, optional
        What must come of building. Default: anything.
    """

    def __init__(self, kind: str, made: type | None = None) -> None:
        self.kind, self.made = kind, made
        self.entries: dict[str, Entry[T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Any]:
        """Register the decorated class or function under a name; its first docstring line is its summary.

        Raises
        ------
        UsageError
            If the name is taken.
        """

        def door(factory: Callable[..., Any]) -> Any:
            if name in self.entries:
                raise UsageError(f"{self.kind} {name!r} is registered twice; choose another name")
            self.entries[name] = Entry(name, factory)
            return factory

        return door

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self.entries:
            raise unknown(self.kind, name, sorted(self.entries))
        return self.entries[name]

    def inner(self, text: str) -> Spec:
        """Parse what stands inside another spec: ``name`` or ``name(value,flag,key=value)``.

        An argument without a key sets the flag of that name, or the first parameter that is not yet given.

        Raises
        ------
        UsageError
            If it is neither, the name is unknown, or there are too many arguments.
        """
        found = re.fullmatch(r"([^()]*?)\s*(?:\((.*)\))?", text.strip(), re.DOTALL)
        if found is None or not found[1]:
            raise UsageError(f"{self.kind} {shown(text)}: expected name, or name(key=value)")
        entry, given = self[found[1]], dict[str, str]()
        flags = [parameter.name for parameter in entry.parameters if parameter.annotation is bool]
        for argument in _split(found[2] or "", ",") if (found[2] or "").strip() else ():
            key, equals, value = (piece.strip() for piece in argument.partition("="))
            if not equals:
                free = [p.name for p in entry.parameters if p.name not in given and p.name not in flags]
                key, value = (key, "true") if key in flags else (free[0] if free else key, key)
            if key in given or not value:
                raise UsageError(f"{self.kind} {entry.name!r}: {shown(argument)} is empty, or one argument too many")
            given[key] = value
        return Spec(entry.name, given)

    def check(self, text: str) -> str:
        """Return what stands inside another spec as it is, if it can be resolved."""
        self.resolve(self.inner(text))
        return text

    def resolve(self, spec: str | Spec) -> Callable[..., T]:
        """Check a spec. Return what builds it from what the program supplies.

        Raises
        ------
        UsageError
            If the name or a parameter is unknown, or a value has the wrong type or range.
        """
        parsed = parse(spec) if isinstance(spec, str) else spec
        entry = self[parsed.name]
        what = f"{self.kind} {parsed.name!r}"
        given = _known(what, parsed.parameters, entry.parameters)
        if not _is_config(entry.factory):
            return functools.partial(entry.factory, **_validated(what, given, entry.parameters))
        try:
            made = entry.factory(**given)
        except UsageError as error:
            raise UsageError(f"{what}: {str(error).removeprefix(f'{entry.factory.__name__}: ')}") from None
        return lambda: made

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
            If the name or a parameter is unknown, a value has the wrong type or range, or something else is made.
        """
        made = self.resolve(spec)(*context)
        if self.made is not None and not isinstance(made, self.made):
            what = f"{self.kind} {str(spec)!r}: it returned a {type(made).__name__}"
            raise UsageError(f"{what}; expected a {self.made.__module__.partition('.')[0]} {self.made.__name__}")
        return made


@contextmanager
def foreign(message: str, remedy: str) -> Iterator[None]:
    """Turn whatever a user's own code raises, ``sys.exit`` included, into one line: message (error, place); remedy."""
    try:
        yield
    except SparsyncError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if last.filename.startswith("<frozen") else f", at {last.filename}:{last.lineno}"
        raise UsageError(f"{message} ({described(error)}{place}); {remedy}") from error


def import_module(name: str, what: str, otherwise: str) -> ModuleType:
    """Import a user's module.

    Parameters
    ----------
    name : str
        The module.
    what : str
        What names it, for the message: ``"imports"``.
    otherwise : str
        What to do if there is no such module.

    Raises
    ------
    UsageError
        If there is none, or it raises anything while it is imported.
    """
    message = f"{what}: cannot import {name!r}"
    with foreign(message, "mend the module"):
        try:
            if not name.strip(".") or name.startswith("."):
                raise ModuleNotFoundError(f"No module can be named {name!r}")
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(f"{message} ({error}); {otherwise}") from None


def is_code(spec: str, registry: Registry[Any]) -> bool:
    """Whether a spec names Python code, as in ``package.module:function``, and nothing of the registry's."""
    place, _, rest = spec.strip().partition(":")
    return place not in registry.entries and ("." in place or rest.partition(":")[0].isidentifier())


def imported(spec: str, registry: Registry[Any], context: int = 0) -> Callable[..., object] | None:
    """Return the function that ``package.module:function:key=value`` names, with its parameters.

    Parameters
    ----------
    spec : str
        The function, and what it is to be given by name.
    registry : Registry
        What else the spec may be: None is returned if it is the registry's to build.
    context : int
        How many of the function's first parameters the program supplies.

    Raises
    ------
    UsageError
        If it names a module, function or parameter that does not exist, the module raises anything while it is
        imported, or a value has the wrong type or range.
    """
    if not is_code(spec, registry):
        return None
    place, _, rest = spec.strip().partition(":")
    name, colon, _ = rest.partition(":")
    what = f"{registry.kind} {spec!r}"
    if not name.isidentifier():
        raise UsageError(f"{what}: expected package.module:function, but no function is named after the colon")
    module = import_module(
        place, what, f"choose one of {', '.join(sorted(registry.entries))}, or put the module's folder on PYTHONPATH"
    )
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what}: module {place!r} has no function {name!r}; define it there")
    if not colon:
        made: Callable[..., object] = function
        return made
    try:
        parameters = Entry(name, function).by_name(context)
    except ValueError:  # of what is not written in Python
        raise UsageError(f"{what}: it does not say what parameters it has; give none") from None
    given = _known(what, parse(rest).parameters, parameters)
    chosen = [parameter for parameter in parameters if parameter.name in given]
    return functools.partial(function, **_validated(what, given, chosen))
