"""How what crosses the cut travels, chosen alike by all strategies with clients; and runs that remember nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from sparsync.spec import config
from sparsync.split.channel import channel_chain
from sparsync.split.trainer import Labels, SplitTrainer


@config
class CutCodecs:
    """What a strategy with a cut lets its user choose.

    Attributes
    ----------
    uplink, downlink : str, optional
        Codec chains of activations and of their gradients, such as ``bf16`` or ``q8``. Default: as computed.
    labels : {"server", "clients"}
        Whether labels travel with the activations; if clients keep them, the top's outputs come down and the loss is
        computed there. Default: ``server``.
    """

    uplink: str | None = None
    downlink: str | None = None
    labels: Labels = "server"

    @model_validator(mode="after")
    def _codecs(self) -> CutCodecs:
        channel_chain(self.uplink)
        channel_chain(self.downlink)
        return self

    def set_up(self, trainer: SplitTrainer, **options: bool) -> None:
        """Set up a trainer, and open it with `options`: clients receive their bottoms and say what data they have."""
        trainer.configure(channel_chain(self.uplink), channel_chain(self.downlink), self.labels)
        trainer.open(**options)


class StatelessStrategy:
    """A strategy in a run that remembers nothing: all that changes is the trainer's."""

    def epoch_over(self) -> None:
        """Nothing is averaged."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
