"""Strategies that differ in one number only: what that number trades for what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sparsync.errors import UsageError
from sparsync.reporting.epochs import uniform_psl
from sparsync.reporting.history import ComparisonRecord, Result
from sparsync.spec import Spec, parse

__all__ = ["Sweep", "references", "sweeps"]

_LEAST = 3  # values: two are a comparison
_PLAIN = ("synchronous", "fedavg", "centralised")


@dataclass(frozen=True)
class Sweep:
    """Strategies whose specs are equal but for one number, and of which a seed at least ended without an error.

    Attributes
    ----------
    name : str
        What they have in common: ``psl:sampler=lds,strength=…``.
    option : str
        What the number is called.
    unit : str or None
        What the strategies count.
    labels : mapping of float to str
        Their labels by the number, increasing.
    """

    name: str
    option: str
    unit: str | None
    labels: Mapping[float, str]

    @property
    def first(self) -> str:
        """The label of the lowest value, whose look a curve through all of them has."""
        return next(iter(self.labels.values()))


def sweeps(run: ComparisonRecord) -> dict[tuple[str, str], list[Sweep]]:
    """Return a run's sweeps by the strategy's name and the option; there are several where a grid was run."""
    groups: dict[tuple[str, str, frozenset[tuple[str, str]]], dict[float, Result]] = {}
    for result in run.results:
        for name, option, others, value in _numbers(result) if result.error is None else ():
            groups.setdefault((name, option, others), {}).setdefault(value, result)
    found: dict[tuple[str, str], list[Sweep]] = {}
    for (name, option, _), by_value in groups.items():
        if len(by_value) >= _LEAST:
            found.setdefault((name, option), []).append(_sweep(option, by_value))
    return found


def references(run: ComparisonRecord, unit: str | None) -> tuple[str, ...]:
    """Return the labels of the plain strategies that others of their unit are held against, one of each name.

    They are synchronous averaging and federated averaging without any option, PSL whose batches are drawn uniformly,
    and centralised training.
    """
    found: dict[str, str] = {}
    for result in run.results:
        if result.unit == unit and result.error is None and (result.spec in _PLAIN or uniform_psl(result)):
            found.setdefault(result.strategy, result.label)
    return tuple(found.values())


def _numbers(result: Result) -> Iterator[tuple[str, str, frozenset[tuple[str, str]], float]]:
    """Go through a spec's numbers: the strategy's name, the option, all other options, and the value."""
    try:
        spec = parse(result.spec)
    except UsageError:
        return
    for option, text in spec.parameters.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            yield spec.name, option, frozenset(spec.parameters.items()) - {(option, text)}, value


def _sweep(option: str, by_value: Mapping[float, Result]) -> Sweep:
    first = next(iter(by_value.values()))
    spec = parse(first.spec)
    labels = {value: by_value[value].label for value in sorted(by_value)}
    return Sweep(str(Spec(spec.name, {**spec.parameters, option: "…"})), option, first.unit, labels)
