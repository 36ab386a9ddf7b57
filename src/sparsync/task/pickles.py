"""The Python version of CIFAR, whose files are pickles: read as data, without unpickling them.

A pickle is a program for a stack machine, which may import and call anything. Here the standard library only
disassembles it; its plain values are put together, and what it would import or call stays a name. Nothing is imported,
looked up or called, whatever the file says.
"""

from __future__ import annotations

import pickletools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsync.errors import DataError
from sparsync.task.files import Bytes, read_bytes

_MOST_STEPS = 1_000_000
"""Of one pickle: several times what 50,000 pictures with two labels and a file name each need, as in CIFAR-100."""

_LITERALS = {
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
}
"""Steps that put down the number, text or bytes that they carry."""


def read_pickled(path: Path, labels: str) -> tuple[Bytes, Bytes]:
    """Read the pictures, (n, 3, 32, 32), and the labels under a key, (n,), of a pickled batch.

    Raises
    ------
    DataError
        If the file is anything else.
    """
    batch = _read(path)
    pixels, numbers = _pixels(batch.get("data")), batch.get(labels)
    if pixels is None:
        raise DataError(f"{path}: holds no array of (n, 3072) bytes under 'data'; fetch the Python version again")
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 256 for number in numbers):
        raise DataError(f"{path}: holds no list of labels under {labels!r}; fetch the Python version again")
    return pixels.reshape(-1, 3, 32, 32), np.array(numbers, dtype=np.uint8)


def read_pickled_names(path: Path) -> list[str]:
    """Read the names of CIFAR-100's classes."""
    names = _read(path).get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: holds no list of names under 'fine_label_names'; fetch it again, or remove it")
    return names


@dataclass(eq=False)
class _Call:
    """What unpickling would have called, by module and name, and with what; and the result's state."""

    name: Any
    arguments: Any
    state: Any = None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = _value(read_bytes(path))
    except DataError:
        raise
    except Exception as error:  # a broken pickle may take anything from anything
        raise DataError(f"{path}: not a batch of CIFAR's Python version; fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}; expected a dict, so fetch the Python version again")
    return value


def _value(pickle: bytes) -> Any:
    """Return the value that a pickle stands for; texts and bytes, which Python 2 did not tell apart, as Latin-1."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def pop(count: int) -> list[Any]:
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def marked() -> list[Any]:
        return pop(len(stack) - marks.pop())

    for step, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if step > _MOST_STEPS:
            raise ValueError("too long")
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(argument.decode("latin-1") if isinstance(argument, bytes | bytearray) else argument)
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "TUPLE":
                stack.append(tuple(marked()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(marked())
            case "APPEND" | "APPENDS":
                items = pop(1) if opcode.name == "APPEND" else marked()
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_entries(marked()))
            case "SETITEM" | "SETITEMS":
                items = pop(2) if opcode.name == "SETITEM" else marked()
                stack[-1].update(_entries(items))
            case "GLOBAL":
                stack.append(tuple(argument.split(" ")))
            case "STACK_GLOBAL":
                stack.append(tuple(pop(2)))
            case "REDUCE":
                function, arguments = pop(2)
                encoded = function == ("_codecs", "encode")  # how Python 3 writes bytes for Python 2
                stack.append(arguments[0] if encoded else _Call(function, arguments))
            case "BUILD":
                (state,) = pop(1)
                stack[-1].state = state
            case _:
                raise ValueError(opcode.name)
    raise ValueError("no end")


def _entries(items: list[Any]) -> dict[str, Any]:
    """Return keys and values that follow each other as a dict."""
    if not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a key is no text")
    return dict(zip(items[::2], items[1::2], strict=True))


def _pixels(value: Any) -> Bytes | None:
    """Return an array of (n, 3072) bytes that a pickle describes, in either of numpy's ways; None if it is none."""
    match value:
        case _Call((_, "_reconstruct"), _, (_, (int(n), 3072), dtype, False, str(data))):
            pass
        case _Call((_, "_frombuffer"), (str(data), dtype, (int(n), 3072), "C")):
            pass
        case _:
            return None
    match dtype:
        case _Call(("numpy", "dtype"), ("u1" | "|u1", *_)) if len(data) == n * 3072:
            with suppress(UnicodeEncodeError):  # of a text where bytes belong
                return np.frombuffer(data.encode("latin-1"), np.uint8).reshape(n, 3072)
    return None
