"""HADFL on real machines: a coordinator, and one process per device."""

from sparsync.engines.devices.connections import DeviceConnections
from sparsync.engines.devices.coordinator import Coordinator
from sparsync.engines.devices.device import Device
from sparsync.engines.devices.membership import Membership
from sparsync.engines.devices.messages import chunk_limit

__all__ = ["Coordinator", "Device", "DeviceConnections", "Membership", "chunk_limit"]
