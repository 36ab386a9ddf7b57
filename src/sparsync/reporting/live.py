"""What a person sees while a comparison runs: one line per strategy and seed, live."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparsync.reporting.fields import counted
from sparsync.reporting.palette import visible
from sparsync.reporting.tables import LabelCell
from sparsync.reporting.units import human_bytes

_PLAIN_EVERY = 10.0  # seconds between two lines where the output is no terminal


class _Console(Console):
    """Standard error, whose reader may go (``2>&1 | head``) without an end to what is being trained."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class LiveTable:
    """Step, accuracy, bytes and syncs, rounds or epochs of every strategy as it trains. A context manager.

    Parameters
    ----------
    total_steps : int
        Steps per strategy, at most.
    several_seeds : bool
        Whether lines name their seed.
    console : Console, optional
        Where to write. Default: standard error, so that results can be piped.
    total_rounds, total_epochs : int, optional
        Rounds per federated strategy and epochs per split one, at most.
    """

    def __init__(
        self,
        total_steps: int,
        several_seeds: bool,
        console: Console | None = None,
        total_rounds: int | None = None,
        total_epochs: int | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.totals = {"rounds": total_rounds, "epochs": total_epochs}
        self.several_seeds = several_seeds
        self.console = console or _Console(stderr=True)
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._live: Live | None = None
        self._shown = 0.0

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=8, get_renderable=self._table, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def noted(self, text: str) -> None:
        """There is something to tell about the data."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, label: str, seed: int, step: int) -> None:
        """A strategy begins, or goes on at `step`."""
        self.rows[label, seed] = {
            "step": step,
            "accuracy": None,
            "bytes": 0,
            "syncs": 0,
            "unit": None,  # not yet known
            "state": "trains",
        }
        if step and self._live is None:
            self._print(f"{self._name(label, seed)}: resumed at step {step}")

    def stepped(self, label: str, seed: int, step: int, syncs: int, nbytes: int) -> None:
        """It has taken steps."""
        self.rows[label, seed].update(step=step, syncs=syncs, bytes=nbytes)

    def moved(self, label: str, seed: int, line: dict[str, Any]) -> None:
        """It was evaluated."""
        self.rows[label, seed].update(accuracy=line["accuracy"], bytes=line["bytes"], **_so_far(line))
        if self._live is None and time.monotonic() - self._shown > _PLAIN_EVERY:
            self._shown = time.monotonic()
            self._say(label, seed, line["step"])

    def finished(self, result: dict[str, Any]) -> None:
        """It is done, or has failed."""
        key = result["label"], result["seed"]
        state = "failed" if result["error"] else "reached" if result["reached"] else "done"
        self.rows[key].update(
            step=result["steps"],
            accuracy=result["accuracy"],
            bytes=result["bytes"]["total"],
            state=state,
            **_so_far(result),
        )
        if self._live is None:
            self._say(*key, result["steps"], state)
        if result["error"]:
            self._print(f"{self._name(*key)}: {result['error']}")

    def _name(self, label: str, seed: int) -> str:
        return visible(label) + (f" (seed {seed})" if self.several_seeds else "")

    def _syncs(self, row: dict[str, Any]) -> str:
        total = self.totals.get(row["unit"])
        of = "" if total is None else f"/{total}"
        return f"{row['syncs']}{of} {row['unit'] or ''}".rstrip()

    def _say(self, label: str, seed: int, step: int, state: str = "") -> None:
        row = self.rows[label, seed]
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        self._print(
            f"{self._name(label, seed)}: step {step}, accuracy {accuracy}, {human_bytes(row['bytes'])}, "
            f"{self._syncs(row)}{', ' + state if state else ''}"
        )

    def _print(self, text: str) -> None:
        """Write a line as it is: a label is text, neither markup nor the name of an emoji."""
        self.console.print(Text(text), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("strategy")
        for heading in ("step", "accuracy", "bytes", "so far", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        shown = list(self.rows.items())[-20:]
        for (label, seed), row in shown:
            accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
            table.add_row(
                LabelCell(self._name(label, seed)),
                f"{row['step']}/{self.total_steps}" if row["unit"] == "syncs" else str(row["step"]),
                accuracy,
                human_bytes(row["bytes"]),
                self._syncs(row),
                row["state"],
            )
        return table


def _so_far(line: dict[str, Any]) -> dict[str, Any]:
    """How many syncs, rounds or epochs there have been; nothing where the line does not say."""
    unit = counted(line)
    return {} if unit is None else {"syncs": line[unit], "unit": unit}
