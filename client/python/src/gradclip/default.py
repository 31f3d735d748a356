"""The client of gradclip.torch, gradclip.numpy and gradclip.jax where none is given."""

from __future__ import annotations

import os
import threading
from typing import Optional

from gradclip.client import Client, connect

_lock = threading.Lock()
_client: Optional[Client] = None
_process = 0  # gRPC's connections do not outlive a fork


def default_client() -> Client:
    """The process's client: of the address in the variable GRADCLIP_SERVER, or 127.0.0.1:50051.

    It is made with the first call, without TLS or token; for others give connect()'s client to the
    functions.
    """
    global _client, _process
    with _lock:
        if _client is None or _process != os.getpid():
            _client = connect(os.environ.get("GRADCLIP_SERVER") or "127.0.0.1:50051")
            _process = os.getpid()
        return _client
