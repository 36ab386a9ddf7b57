"""On what a run takes place: profiles of devices and links, and the virtual clock."""

from sparsync.system.clock import Clock
from sparsync.system.delays import DELAYS, ParticipationDelays
from sparsync.system.profile import PRESETS, Outage, Profile
from sparsync.system.system import System
from sparsync.system.timeline import ACTIVITIES, Piece, Timeline

__all__ = [
    "ACTIVITIES",
    "DELAYS",
    "PRESETS",
    "Clock",
    "Outage",
    "ParticipationDelays",
    "Piece",
    "Profile",
    "System",
    "Timeline",
]
