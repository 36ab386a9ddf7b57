"""Files of a run's folder: named without a clash, written as a whole, kept through a power cut, never outside it.

Links inside a run's folder are not followed when it is written to; the folder itself may be one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from sparsync.errors import DataError, SparsyncError, UsageError

PARTIAL = ".sparsync-part"
"""How the names of files end that are being written, or were when their process was killed."""

_LOCK = ".lock"
_PLAIN = re.compile(r"[a-z0-9_][a-z0-9.=_-]{0,99}")


def file_name(label: str) -> str:
    """Return a user's text as part of a file's name; no two texts share one, on any file system.

    Lower-case letters, digits and ``. = _ -`` stay as they are. Any other text keeps what is readable, and gets ``~``
    and a digest of all of it.

    Examples
    --------
    >>> file_name("fda-t2"), file_name("FDA: Θ = 2")
    ('fda-t2', 'FDA-=-2~da5d23068970')
    """
    if _PLAIN.fullmatch(label):
        return label
    readable = re.sub(r"[^A-Za-z0-9.=_-]+", "-", label).strip("-.")[:60]
    return f"{readable or 'label'}~{hashlib.sha256(label.encode(errors='surrogatepass')).hexdigest()[:12]}"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say in one line what could not be written, and why."""
    try:
        yield
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "it is a link, which is not followed" if link else error.strerror or str(error)
        raise SparsyncError(
            f"{path}: cannot be written ({reason}); mend that and go on with `sparsync resume`, or name another folder"
        ) from None


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Give the path of a new file to write, which takes the place of another as a whole, once it is on the disk.

    Raises
    ------
    SparsyncError
        If that is not possible: what was there before still is.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    with named(path):
        try:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            permissions = stat.S_IMODE(partial.stat().st_mode)
            yield partial
            if stat.S_IMODE(partial.stat().st_mode) != permissions:  # safetensors makes a file for its owner alone
                partial.chmod(permissions)
            sync(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text as a whole: a reader, or a resumed run, sees the old file or the new one."""
    with replacing(path, mode) as partial:
        partial.write_bytes(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as a whole, as JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def reading(path: Path) -> BufferedReader:
    """Open a regular file to read it.

    Raises
    ------
    OSError
        If that is not possible, or something else is there: a pipe or a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe must not block
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    folder = stat.S_ISDIR(mode)
    raise OSError(errno.EISDIR if folder else errno.EINVAL, "it is a folder" if folder else "it is no regular file")


def read_bytes(path: Path) -> bytes:
    """Return what a regular file holds; see `reading`."""
    with reading(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    DataError
        If it cannot be read, or is none.
    """
    try:
        return json.loads(read_bytes(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); restore it from a copy") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON; it is damaged or was edited, so restore it from a copy") from None


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write on at its end."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not block
    with named(path), open(os.open(path, flags, 0o666), "ab") as file:
        yield file


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot do so for folders
            raise
    finally:
        os.close(descriptor)


def subfolder(folder: Path, name: str) -> Path:
    """Make a folder within another, if it is not there; a link is none."""
    path = folder / name
    with named(path):
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return path


def remove(path: Path) -> None:
    """Remove a file, a link (and not what it leads to), or a folder with all that it holds."""
    with named(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Have a folder to oneself; the lock goes with the process, however that ends.

    Parameters
    ----------
    folder : Path
        The folder.
    make : bool
        Whether to make it, if it is not there; one that was made and holds nothing in the end is removed.

    Raises
    ------
    UsageError
        If another process has it, or there cannot be such a folder.
    """
    descriptor, made = _lock(folder, make)
    try:
        yield
    finally:
        if os.listdir(folder) == [_LOCK]:
            (folder / _LOCK).unlink()
            with suppress(OSError):  # somebody has just entered it
                if made:
                    folder.rmdir()
        os.close(descriptor)


def _lock(folder: Path, make: bool) -> tuple[int, bool]:
    """Return a locked file, and whether the folder is new."""
    path, made = folder / _LOCK, False
    while True:
        if make:
            made = _made(folder) or made
        with named(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                if make:  # who had it has just removed it
                    continue
                raise
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):  # and it is still the one
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor, made
            except BlockingIOError:
                holder = "".join(filter(str.isprintable, os.read(descriptor, 100).decode(errors="replace")))
                os.close(descriptor)
                who = f" ({holder})" if holder else ""
                raise UsageError(f"{folder}: another process is running in it{who}; wait for it, or stop it") from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _made(folder: Path) -> bool:
    """Make a folder; return whether it was not there before."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if folder.is_dir():
            return False
        reason = "it is a file" if folder.exists() else error.strerror or str(error)
        raise UsageError(f"{folder}: cannot be a folder ({reason}); name another") from None
    return True
