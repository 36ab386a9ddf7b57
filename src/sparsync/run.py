"""One strategy and one seed, from wherever it stands to its entry in the summary.

A `StrategyRun` goes on from its checkpoint if there is one, writes its history and saves as it trains, and tells a
`Watcher`. One that diverges has a result too, with the error in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from sparsync.assembly import SeedSetting
from sparsync.engines import Pace
from sparsync.engines.checkpoint import check_like, damaged
from sparsync.errors import DataError, DivergedError, Interrupted
from sparsync.experiment import matching
from sparsync.peers import Cadence, Follower, PeerStrategy
from sparsync.records import Records
from sparsync.spec import parse


class Watcher(Protocol):
    """Who looks on while a comparison runs (rank 0 only): the terminal's live table, or a test."""

    def noted(self, text: str) -> None:
        """There is something to tell about the data."""

    def started(self, label: str, seed: int, step: int) -> None:
        """A strategy begins, or goes on at `step`."""

    def moved(self, label: str, seed: int, line: dict[str, Any]) -> None:
        """It was evaluated; `line` is its line of the history."""

    def stepped(self, label: str, seed: int, step: int, syncs: int, nbytes: int) -> None:
        """It has taken steps."""

    def finished(self, result: dict[str, Any]) -> None:
        """It is done, or has failed; `result` is its entry in the summary."""


class StrategyRun:
    """One strategy, one seed."""

    def __init__(
        self,
        setting: SeedSetting,
        label: str,
        records: Records,
        watcher: Watcher | None,
        stopping: Callable[[], bool],
    ) -> None:
        self.experiment, self.seed, self.group = setting.experiment, setting.seed, setting.group
        self.label, self.records, self.watcher, self.stopping = label, records, watcher, stopping
        self.lines: list[dict[str, Any]] = []
        self.length, self.digest = records.length, records.digest
        self.wall = 0.0
        self.since = time.monotonic()
        self.spec = self.experiment.strategies[label]
        strategy = self.experiment.strategy(label)
        if isinstance(strategy, Follower) and strategy.match is not None:
            strategy = self._matched(strategy, strategy.match)
        self.loop = setting.assemble(strategy, self._emit)
        records.parameters = self.loop.arena.layout.numel

    def _matched(self, strategy: Follower, wanted: str) -> PeerStrategy:
        """Resolve a strategy against the run that it follows; one that failed still had a cadence until then."""
        earlier = {}
        for label, text in self.experiment.strategies.items():
            if label == self.label:
                break
            earlier[label] = text
        followed = self.records.results[matching(wanted, earlier), self.seed]
        cadence = Cadence(followed["steps"], followed.get("syncs") or followed.get("rounds", 0))
        self.spec = self.spec.replace(f"match={wanted}", f"period={cadence.period}")
        return strategy.matched(cadence)

    def complete(self) -> None:
        """Train, save as it goes, and enter the result in the summary."""
        saved = self.records.checkpoint.load()
        if saved is not None:
            self._restore(saved)
        self.records.rewind(self.length, self.digest)
        if self.watcher:
            self.watcher.started(self.label, self.seed, self.loop.progress.step)
        decide = Pace(self.group, self.experiment.save_seconds, self.stopping)

        def pace(steps: int) -> Any:
            if self.watcher:
                loop = self.loop
                self.watcher.stepped(self.label, self.seed, loop.progress.step, loop.syncs, loop.ledger.total)
            return decide(steps)

        error: str | None = None
        try:
            if not self.loop.run(pace, self._save):
                raise Interrupted(f"stopped; everything so far is saved: sparsync resume {self.records.folder}")
        except DivergedError as diverged:
            error = str(diverged)
        self._flush(durable=True)  # before the summary
        self._finish(error)

    def _restore(self, saved: Any) -> None:
        """Go on from a checkpoint, if it is this run's.

        Raises
        ------
        DataError
            If this run cannot have left it.
        """
        try:
            if (saved["label"], saved["seed"]) != (self.label, self.seed):
                return
            check_like(saved, self._state())
            self.loop.load_state_dict(saved["loop"])
            self.wall = saved["wall_seconds"]
            self.length, self.digest = saved["history_bytes"], saved["history_digest"]
        except (DataError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise damaged(self.records.checkpoint.folder, " ".join(reason.split())) from None

    def _emit(self, line: dict[str, Any]) -> None:
        line = {"label": self.label, "seed": self.seed, **line}
        self.lines.append(line)
        if self.watcher and line["kind"] == "evaluation":
            self.watcher.moved(self.label, self.seed, line)
        if len(self.lines) >= 500:
            self._flush()

    def _flush(self, *, durable: bool = False) -> None:
        self.length, self.digest = self.records.append(self.lines, durable=durable)
        self.lines.clear()

    def _save(self) -> None:
        self._flush(durable=True)  # before the checkpoint, which says how long the history is
        self.records.checkpoint.save(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "seed": self.seed,
            "history_bytes": self.length,
            "history_digest": self.digest,
            "wall_seconds": self._wall_seconds(),
            "loop": self.loop.state_dict(),
        }

    def _wall_seconds(self) -> float:
        return self.wall + time.monotonic() - self.since

    def _finish(self, error: str | None) -> None:
        loop, progress = self.loop, self.loop.progress
        reached = progress.reached
        result = {
            "label": self.label,
            "strategy": parse(self.spec).name,
            "spec": self.spec,
            "seed": self.seed,
            "workers": self.experiment.workers,
            "steps": progress.step,
            loop.counts: loop.syncs,
            "accuracy": progress.accuracy,
            "best_accuracy": progress.best_accuracy,
            "bytes": {"total": loop.ledger.total, **loop.ledger.moved},
            "paper_bytes": {"total": loop.ledger.paper_total, **loop.ledger.paper},
            "reached": None if self.experiment.target is None else reached is not None,
            "steps_to_target": reached["step"] if reached else None,
            "bytes_to_target": reached["bytes"] if reached else None,
            "paper_bytes_to_target": reached["paper_bytes"] if reached else None,
            "seconds_to_target": reached["seconds"] if reached else None,
            "seconds": loop.clock.now,
            "wall_seconds": round(self._wall_seconds(), 3),
            "error": error,
        }
        if error is None:
            model = loop.evaluated()  # by all processes
            self.records.save_model(self.label, self.seed, model)
        self.records.finish(result, self.length, self.digest)
        if self.watcher:
            self.watcher.finished(result)
