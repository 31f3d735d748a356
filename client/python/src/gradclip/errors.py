"""What calls raise. Whatever is raised, no gradient was changed."""

from __future__ import annotations


class GradClipError(Exception):
    """Anything that went wrong in a call; the base of all below.

    code: the gRPC status by name, such as "RESOURCE_EXHAUSTED".
    server: the server's address, or all that were tried.
    """

    def __init__(self, message: str, *, code: str = "UNKNOWN", server: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.server = server


class InvalidArgumentError(GradClipError, ValueError):
    """The server refused an argument; the message names it, and what it may be."""


class NonfiniteGradientError(GradClipError, RuntimeError):
    """The total norm is NaN or infinite, and the caller asked for an error then."""


class ServerUnavailable(GradClipError, ConnectionError):
    """No server answered, or the connection was lost, also when tried again."""


class CallTimeout(GradClipError, TimeoutError):
    """The call's timeout is over, or in a group the step's: the message names missing ranks."""


class AccessError(GradClipError, PermissionError):
    """The server wants a token or certificate, or another one, or does not allow the call."""


class LimitError(GradClipError):
    """A limit of the server; the message names it, and the server's flag."""


class StepAborted(GradClipError):
    """The group's step was aborted; all ranks may go on with `attempt` + 1 of Group."""


_CLASSES: dict[str, type[GradClipError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "UNAVAILABLE": ServerUnavailable,
    "DEADLINE_EXCEEDED": CallTimeout,
    "UNAUTHENTICATED": AccessError,
    "PERMISSION_DENIED": AccessError,
    "RESOURCE_EXHAUSTED": LimitError,
    "ABORTED": StepAborted,
}

_CURES = {
    "UNAVAILABLE": "is gradclip-server running there?",
    "UNAUTHENTICATED": "give connect() a token or token_file, or with TLS a certificate",
}


def from_status(code: str, details: str, server: str) -> GradClipError:
    """The error for a gRPC status."""
    kind = _CLASSES.get(code, GradClipError)
    if code == "FAILED_PRECONDITION" and "NONFINITE_ERROR" in details and "total norm" in details:
        kind = NonfiniteGradientError
    cure = _CURES.get(code)
    message = f"{server}: {details or code}" + (f" ({cure})" if cure else "")
    return kind(message, code=code, server=server)
