"""On what a run takes place: profiles of devices and links, and the virtual clock."""

from sparsync.system.clock import Clock
from sparsync.system.delays import DELAYS, Delays
from sparsync.system.profile import Profile

__all__ = ["DELAYS", "Clock", "Delays", "Profile"]
