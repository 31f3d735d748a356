"""The servers of one client: one, or several that may stand in for each other, and which is in
use.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Optional

import grpc

from gradclip import _contract
from gradclip.security import Tls, Token, is_on_this_host

_SERVICE = "/gradclip.v1.GradClip/"
_OPTIONS = [
    # Answers have one TensorNorm for each tensor, at most; only what was asked for comes.
    ("grpc.max_receive_message_length", -1),
    # Channels of other clients have back-offs of their own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Connecting again waits for the name to be looked up again: every 30 s, by default, at most.
    ("grpc.dns_min_time_between_resolutions_ms", 100),
    # Who tries again, and when, is decided in _retry.py.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


class Failure(Exception):
    """A try that failed: a gRPC status by name, its message, and where."""

    def __init__(self, code: str, details: str, server: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.server = server


def failure_of(error: grpc.RpcError, server: str) -> Failure:
    """What gRPC's error is. REQUIRES: nobody cancelled the call here."""
    code, details = error.code().name, error.details() or ""
    # gRPC's at a server that stops, for a call that nobody there has seen (grpc/grpc#41785).
    if code == "CANCELLED" and details == "CANCELLED":
        return Failure("UNAVAILABLE", "the server stopped before it took the call", server)
    # gRPC's for a connection that ended amid a call, sometimes.
    if code == "UNKNOWN" and details.startswith(("Stream removed", "Error in HTTP transport")):
        return Failure("UNAVAILABLE", "the connection ended before the answer", server)
    if code == "DEADLINE_EXCEEDED" and details == "Deadline Exceeded":
        return Failure(code, "the call's timeout is over", server)
    if code == "RESOURCE_EXHAUSTED" and details.startswith("Received message larger than max"):
        details = (
            f"message_bytes of connect() is more than the server's --max-message-bytes ({details})"
        )
    return Failure(code, details, server)


@dataclass
class Server:
    """One address with its channel, whose connection gRPC makes and makes again."""

    address: str
    channel: Any
    reached: bool = False  # it answered, and no call has failed since
    # What it said then.
    instance: str = ""
    memory_socket: str = ""
    compute_norm: Any = field(init=False)
    clip_grad_norm: Any = field(init=False)
    get_server_info: Any = field(init=False)

    def __post_init__(self) -> None:
        # Requests are bytes already: no serializer.
        self.compute_norm = self.channel.stream_unary(
            _SERVICE + "ComputeNorm", None, _contract.ComputeNormResponse.FromString
        )
        self.clip_grad_norm = self.channel.stream_stream(
            _SERVICE + "ClipGradNorm", None, _contract.ClipGradNormResponse.FromString
        )
        self.get_server_info = self.channel.unary_unary(
            _SERVICE + "GetServerInfo", None, _contract.GetServerInfoResponse.FromString
        )


class Servers:
    """Thread-safe. Connects with the first call."""

    def __init__(
        self, address: str, tls: Optional[Tls], token: Token, connect_timeout: float
    ) -> None:
        addresses = [part.strip() for part in address.split(",")]
        if not all(addresses):
            raise ValueError(
                f'address "{address}" has an empty part; it is "host:port" or "unix:/path", '
                "or several with commas"
            )
        for one in addresses:
            if not one.startswith("unix") and not one.rpartition(":")[2].isdigit():
                raise ValueError(f'address "{one}" has no port; it is "host:port" or "unix:/path"')
            if token and tls is None and not is_on_this_host(one):
                raise ValueError(
                    f"a token is given, and it would cross the network to {one} unencrypted; "
                    "give tls as well"
                )
        self.address = ",".join(addresses)
        self.token = token
        self._connect_timeout = connect_timeout
        self._servers = [Server(one, _open(one, tls)) for one in addresses]
        self._lock = threading.Lock()
        self._begin = 0  # guarded by _lock; where the next call goes first

    def take(self, deadline: Optional[float]) -> Server:
        """The server that was reached last, or the next in order that answers. Raises Failure."""
        with self._lock:
            begin = self._begin
        failures = []
        for step in range(len(self._servers)):
            index = (begin + step) % len(self._servers)
            server = self._servers[index]
            try:
                if not server.reached:
                    self._reach(server, deadline)
            except Failure as failure:
                if failure.code != "UNAVAILABLE":
                    raise
                failures.append(failure)
                continue
            with self._lock:
                if self._begin == begin:
                    self._begin = index
            return server
        if len(failures) == 1:
            raise failures[0]
        raise Failure(
            "UNAVAILABLE",
            "; ".join(f"{one.server}: {one.details}" for one in failures),
            self.address,
        )

    def _reach(self, server: Server, deadline: Optional[float]) -> None:
        rest = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        within = self._connect_timeout if rest is None else min(rest, self._connect_timeout)
        try:
            answer = server.get_server_info(b"", timeout=within, metadata=self.token.metadata())
        except grpc.RpcError as error:
            failure = failure_of(error, server.address)
            if failure.code == "DEADLINE_EXCEEDED" and within == self._connect_timeout:
                raise Failure(
                    "UNAVAILABLE", f"no answer within {within:g} s", server.address
                ) from None
            if failure.code == "UNAVAILABLE":
                raise Failure(
                    "UNAVAILABLE", f"nobody answers: {failure.details}", server.address
                ) from None
            raise failure from None
        server.instance, server.memory_socket = answer.instance, answer.memory_socket
        server.reached = True

    def lose(self, server: Server, pass_over: bool) -> None:
        """The server failed a call. pass_over: the next call goes to the address after it first."""
        server.reached = False
        if pass_over:
            with self._lock:
                if self._servers[self._begin] is server:
                    self._begin = (self._begin + 1) % len(self._servers)

    def start_over(self) -> None:
        """The next call goes to the first address first: ranks that have come apart meet there."""
        with self._lock:
            self._begin = 0

    def close(self) -> None:
        for server in self._servers:
            server.channel.close()


def _open(address: str, tls: Optional[Tls]) -> Any:
    if tls is None or address.startswith("unix"):  # which does not leave the host
        return grpc.insecure_channel(address, options=_OPTIONS)
    options = list(_OPTIONS)
    if tls.server_name is not None:
        names: list[tuple[str, Any]] = [
            ("grpc.ssl_target_name_override", tls.server_name),
            ("grpc.default_authority", tls.server_name),
        ]
        options = [*_OPTIONS, *names]
    return grpc.secure_channel(address, tls.credentials(), options=options)
