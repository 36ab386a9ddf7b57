"""Run by test_remote under torchrun: what the kernel counted on the server's connections, beside the ledger.

Usage: split_bytes.py OUT ARGUMENTS, the latter as for ``sparsync``. The kernel's counts are ``bytes_acked`` and
``bytes_received`` of TCP_INFO (Linux, include/uapi/linux/tcp.h), read as each connection ends.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from pathlib import Path

from sparsync.__main__ import main
from sparsync.transport import Connection

counted = [0, 0]
close = Connection.close


def closing(link: Connection) -> None:
    info = link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    for i, nbytes in enumerate(struct.unpack_from("<QQ", info, 120)):
        counted[i] += nbytes
    close(link)


Connection.close = closing  # type: ignore[method-assign]
out = Path(sys.argv.pop(1))
try:
    main()
finally:
    if os.environ["RANK"] == "0":
        out.write_text(json.dumps(counted))
