"""The client: norms and clipping of buffers, over one or several servers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

import grpc

from gradclip import _contract, _retry
from gradclip._servers import Failure, Server, Servers, failure_of
from gradclip._staging import Places, Staging
from gradclip._wire import Declarations, requests, start_request
from gradclip.answer import (
    ClipAnswer,
    NormAnswer,
    ServerInfo,
    clip_answer,
    norm_answer,
    server_info,
)
from gradclip.group import Group, to_message
from gradclip.security import Tls, Token
from gradclip.tensor import Declared, Tensor, declare

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_POLICIES = {
    "propagate": _contract.NONFINITE_PROPAGATE,
    "error": _contract.NONFINITE_ERROR,
    "skip": _contract.NONFINITE_SKIP,
    "zero": _contract.NONFINITE_ZERO,
}
_REPLIES = {
    "coefficient": _contract.REPLY_COEFFICIENT,
    "gradient": _contract.REPLY_GRADIENT,
    "gradient_if_changed": _contract.REPLY_GRADIENT_IF_CHANGED,
}

Answer = TypeVar("Answer")
Tensors = Iterable[Union[Tensor, Declared, "ReadableBuffer"]]


def connect(
    address: str,
    *,
    tls: Union[bool, Tls] = False,
    token: Optional[str] = None,
    token_file: Optional[str] = None,
    timeout: Optional[float] = None,
    connect_timeout: float = 5.0,
    retries: int = 4,
    message_bytes: int = 1 << 20,
    shared_bytes: int = 1 << 28,
) -> Client:
    """A client of the server at an address. It connects with the first call.

    address: "host:port" or "unix:/path", or several with commas between, of servers that may stand
        in for each other: a call goes to the one that was reached last, and to the next in order
        where nobody answers. Ranks of a group may be at different servers only where those share a
        store.
    tls: TLS over TCP: True, or a Tls with files. Over a unix socket nothing is encrypted.
    token, token_file: the bearer token for servers with --auth-token-file, or a file with it, read
        anew for each call. Only sent over TLS or to this host.
    timeout: seconds that a call may take over all tries; None for no limit.
    connect_timeout: seconds to wait for one address to answer.
    retries: how often a call is tried again that ended with UNAVAILABLE, after about 0.1 s, 0.2 s,
        0.4 s, ...
    message_bytes: bytes of gradient in one message; a server takes up to its --max-message-bytes.
    shared_bytes: a server on this host with a --memory-socket, which runs as root or as this user,
        is not sent gradients of 1 MiB up to so many bytes: they are copied to memory that it reads,
        which is faster. The client keeps that memory, as large as its largest gradient yet; it
        counts against the server's --memory-budget. Where the server refuses it, gradients are
        sent. 0 always sends. Of gradclip.torch's CUDA tensors that holds for each device: the
        memory is on it, beside torch's own, where the server has --allow-cuda-ipc.

    Raises ValueError for a wrong argument, OSError where a file of tls can't be read.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout} s; it must be > 0, or None")
    if not connect_timeout > 0:
        raise ValueError(f"connect_timeout is {connect_timeout} s; it must be > 0")
    if retries < 0:
        raise ValueError(f"retries is {retries}; it must be >= 0")
    if not 1 <= message_bytes <= 1 << 30:
        raise ValueError(f"message_bytes is {message_bytes}; it must be 1 to {1 << 30}")
    if shared_bytes < 0:
        raise ValueError(f"shared_bytes is {shared_bytes}; it must be >= 0")
    with_tls = tls if isinstance(tls, Tls) else Tls() if tls else None
    servers = Servers(address, with_tls, Token(token, token_file), connect_timeout)
    return Client(
        servers,
        timeout=timeout,
        retries=retries,
        message_bytes=message_bytes,
        shared_bytes=shared_bytes,
    )


class Client:
    """A client of a GradClip server; made by connect(). Thread-safe: calls may run at once.

    Calls raise GradClipError or one of its classes (gradclip.errors), ValueError and TypeError for
    wrong arguments. Whatever they raise, the tensors are as they were.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        timeout: Optional[float],
        retries: int,
        message_bytes: int,
        shared_bytes: int,
    ) -> None:
        self._servers = servers
        self._timeout = timeout
        self._retries = retries
        self._message_bytes = message_bytes
        self._declarations = Declarations()
        self._staging = Staging(shared_bytes)

    @property
    def address(self) -> str:
        """The address, or addresses with commas between."""
        return self._servers.address

    def compute_norm(
        self,
        tensors: Tensors,
        *,
        norm_type: float = 2.0,
        pre_scale: float = 1.0,
        per_tensor: bool = False,
        group: Optional[Group] = None,
    ) -> NormAnswer:
        """The norm of all tensors together.

        tensors: Tensor, or buffers that say their dtype, such as array.array("f") and NumPy's
            arrays.
        norm_type: p of the p-norm: > 0, or infinity for the largest magnitude.
        pre_scale: what every element is multiplied by first; finite, > 0.
        per_tensor: also answer with each tensor's norm.
        group: the gradient is one rank's part.
        """
        start = _contract.ComputeNormStart()
        _set_norm(start.norm, norm_type, pre_scale, per_tensor)

        def attempt(
            server: Server,
            rest: Optional[float],
            requests: Iterator[bytes],
            metadata: Any,
            number: int,
        ) -> NormAnswer:
            call = server.compute_norm.future(requests, timeout=rest, metadata=metadata)
            try:
                return norm_answer(call.result().norm, number)
            except grpc.RpcError:
                raise
            except BaseException:  # KeyboardInterrupt
                call.cancel()
                raise

        return self._stream(declare(tensors), start, group, attempt)

    def clip(
        self,
        tensors: Tensors,
        max_norm: float,
        *,
        epsilon: float = 1e-6,
        nonfinite: str = "propagate",
        reply: str = "coefficient",
        norm_type: float = 2.0,
        pre_scale: float = 1.0,
        per_tensor: bool = False,
        group: Optional[Group] = None,
    ) -> ClipAnswer:
        """How to clip the tensors by their total norm, and with other replies does so.

        max_norm: >= 0; infinity measures and never clips.
        epsilon: added to the norm before dividing; finite, >= 0.
        nonfinite: where the total norm is NaN or infinite: "propagate", as PyTorch does (the
            coefficient is 0 or NaN); "error" raises NonfiniteGradientError; "skip" changes nothing;
            "zero" assigns 0.
        reply: "coefficient": the tensors are only read, and the caller multiplies by
            answer.coefficient, and assigns 0 where answer.skipped and it is 0. (gradclip.numpy and
            gradclip.torch do that.) "gradient" and "gradient_if_changed": the server sends the
            clipped bytes back, always or where they differ, and they are written to the tensors,
            which must be writable, once all have come: it takes twice the traffic, and the
            gradient's size of memory for the time of the call.
        The rest as of compute_norm().
        """
        if nonfinite not in _POLICIES:
            raise ValueError(
                f'nonfinite is "{nonfinite}"; it must be one of {", ".join(_POLICIES)}'
            )
        if reply not in _REPLIES:
            raise ValueError(f'reply is "{reply}"; it must be one of {", ".join(_REPLIES)}')
        return self._clip(
            declare(tensors),
            max_norm,
            epsilon=epsilon,
            nonfinite=nonfinite,
            reply=reply,
            norm_type=norm_type,
            pre_scale=pre_scale,
            per_tensor=per_tensor,
            group=group,
        )

    def _clip(
        self,
        declared: list[Declared],
        max_norm: float,
        *,
        epsilon: float = 1e-6,
        nonfinite: str = "propagate",
        reply: str = "coefficient",
        norm_type: float = 2.0,
        pre_scale: float = 1.0,
        per_tensor: bool = False,
        group: Optional[Group] = None,
        places: Optional[Places] = None,
    ) -> ClipAnswer:
        """As clip(). places: says where the server has the tensors already."""
        if reply != "coefficient":
            for index, one in enumerate(declared):
                if one.view.readonly and one.nbytes:
                    raise ValueError(
                        f'tensor "{one.name or index}" is read only; reply "{reply}" writes to it'
                    )
        start = _contract.ClipGradNormStart(
            max_norm=max_norm,
            epsilon=epsilon,
            nonfinite=_POLICIES[nonfinite],
            reply=_REPLIES[reply],
        )
        _set_norm(start.norm, norm_type, pre_scale, per_tensor)

        def attempt(
            server: Server,
            rest: Optional[float],
            requests: Iterator[bytes],
            metadata: Any,
            number: int,
        ) -> tuple[ClipAnswer, list[bytes]]:
            call = server.clip_grad_norm(requests, timeout=rest, metadata=metadata)
            answer = None
            clipped = []
            try:
                for message in call:
                    if message.WhichOneof("payload") == "result":
                        answer = clip_answer(message.result, number)
                    else:
                        clipped.append(message.data)
            except grpc.RpcError:
                raise
            except BaseException:  # KeyboardInterrupt
                call.cancel()
                raise
            if answer is None:
                raise Failure(
                    "INTERNAL", "the server ended the call without a result", server.address
                )
            expected = sum(one.nbytes for one in declared) if answer.gradient_follows else 0
            if sum(map(len, clipped)) != expected:
                raise Failure(
                    "INTERNAL",
                    f"the server sent {sum(map(len, clipped))} clipped bytes of {expected}",
                    server.address,
                )
            return answer, clipped

        answer, clipped = self._stream(
            declared, start, group, attempt, places, read_only=reply == "coefficient"
        )
        _write(clipped, declared)
        return answer

    def server_info(self) -> ServerInfo:
        """What the server is, can do and allows."""

        def attempt(server: Server, rest: Optional[float]) -> ServerInfo:
            try:
                return server_info(
                    server.get_server_info(
                        b"", timeout=rest, metadata=self._servers.token.metadata()
                    )
                )
            except grpc.RpcError as error:
                raise failure_of(error, server.address) from None

        return _retry.run(
            self._servers,
            attempt,
            deadline=_retry.end_of(self._timeout),
            retries=self._retries,
            in_group=False,
        )

    def close(self) -> None:
        """Closes the connections; running calls end with an error."""
        self._servers.close()
        self._staging.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f'<gradclip.Client of "{self.address}">'

    def _stream(
        self,
        declared: list[Declared],
        start: Any,
        group: Optional[Group],
        call: Callable[[Server, Optional[float], Iterator[bytes], Any, int], Answer],
        places: Optional[Places] = None,
        *,
        read_only: bool = True,
    ) -> Answer:
        """places: says where the server has the tensors already.
        read_only: nothing comes back but the answer.
        """
        declarations = self._declarations.serialise(declared)
        deadline = _retry.end_of(self._timeout)
        # Of the group's attempt at hand.
        first, number = b"", 0
        shared = False  # the last try had tensors that were not sent

        def once(server: Server, rest: Optional[float]) -> Answer:
            nonlocal shared
            begin = time.monotonic()
            at = (places or stage)(server, rest)
            shared = any(at)
            then = requests(declared, at, self._message_bytes)
            if rest is not None:
                rest = max(rest - (time.monotonic() - begin), 0.001)
            try:
                metadata = self._servers.token.metadata()
                return call(server, rest, chain((first,), then), metadata, number)
            except grpc.RpcError as error:
                failure = failure_of(error, server.address)
                if shared and failure.code == "NOT_FOUND":  # it is to be registered anew
                    raise Failure("UNAVAILABLE", failure.details, server.address) from None
                raise failure from None

        def attempt(server: Server, rest: Optional[float]) -> Answer:
            try:
                return once(server, rest)
            except Failure as failure:
                if places is not None or not shared or failure.code != "PERMISSION_DENIED":
                    raise
            # This caller may not share memory, perhaps; the next try sends.
            return once(server, rest)

        def tries(group: Optional[Group]) -> Answer:
            nonlocal first, number
            if group is not None:
                number = group.attempt
                start.group.CopyFrom(to_message(group))
            first = start_request(start.SerializeToString(), declarations)
            return _retry.run(
                self._servers,
                attempt,
                deadline=deadline,
                retries=self._retries,
                in_group=group is not None,
            )

        with self._staging.lend(declared, may=places is None and read_only) as stage:
            return _retry.run_step(group, tries, deadline=deadline)


def _set_norm(norm: Any, norm_type: float, pre_scale: float, per_tensor: bool) -> None:
    norm.norm_type = norm_type
    norm.pre_scale = pre_scale
    norm.per_tensor = per_tensor


def _write(clipped: list[bytes], declared: list[Declared]) -> None:
    """Copies the messages' bytes, one after another, into the tensors."""
    messages = iter(clipped)
    message = memoryview(b"")
    for tensor in declared if clipped else ():
        begin = 0
        while begin < len(tensor.view):
            if not message:
                message = memoryview(next(messages))
            part = message[: len(tensor.view) - begin]
            tensor.view[begin : begin + len(part)] = part
            begin += len(part)
            message = message[len(part) :]
