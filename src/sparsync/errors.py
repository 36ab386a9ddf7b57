"""What can go wrong, as a small tree: catch :class:`SparsyncError` to catch all of it."""

from __future__ import annotations


class SparsyncError(Exception):
    """Any failure that sparsync itself reports. Its message is one sentence that says what to do next."""


class UsageError(SparsyncError, ValueError):
    """A user's mistake: an unknown name, a value out of range, a combination that cannot work."""


class DataError(SparsyncError):
    """Data that are missing, truncated or corrupt."""


class PayloadError(SparsyncError):
    """Bytes from the network that are not the message they claim to be. It costs its sender, not the run."""


class DivergedError(SparsyncError):
    """A number that training depends on is no longer finite."""


class Interrupted(SparsyncError):
    """The user asked to stop; everything needed to resume has been saved."""


def described(error: BaseException) -> str:
    """Return the type and the first line of another's error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
