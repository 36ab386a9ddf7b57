"""The network: authenticated connections between processes, which carry whole messages.

What messages are about is known to those who exchange them: each protocol has a `MessageKind` of its own.
"""

from sparsync.transport.connection import (
    SMALL_BODY,
    Connection,
    ConnectionLost,
    Frame,
    MessageKind,
    ProtocolFault,
    Signal,
)
from sparsync.transport.listener import TOKEN_BYTES, Listener, connect

__all__ = [
    "SMALL_BODY",
    "TOKEN_BYTES",
    "Connection",
    "ConnectionLost",
    "Frame",
    "Listener",
    "MessageKind",
    "ProtocolFault",
    "Signal",
    "connect",
]
