"""A client of GradClip, a gRPC service that clips gradients by their norm.

    client = gradclip.connect("127.0.0.1:50051")
    answer = client.clip([array.array("f", [3, 4])], max_norm=1.0)
    answer.norm.total_norm, answer.coefficient  # 5.0, 0.19999996

gradclip.torch, gradclip.numpy and gradclip.jax clip tensors and arrays; see there.
"""

from gradclip.answer import Backend, ClipAnswer, NormAnswer, ServerInfo, TensorNorm
from gradclip.client import Client, connect
from gradclip.default import default_client
from gradclip.errors import (
    AccessError,
    CallTimeout,
    GradClipError,
    InvalidArgumentError,
    LimitError,
    NonfiniteGradientError,
    ServerUnavailable,
    StepAborted,
)
from gradclip.group import Group
from gradclip.security import Tls
from gradclip.tensor import Tensor

__all__ = [
    "AccessError",
    "Backend",
    "CallTimeout",
    "Client",
    "ClipAnswer",
    "GradClipError",
    "Group",
    "InvalidArgumentError",
    "LimitError",
    "NonfiniteGradientError",
    "NormAnswer",
    "ServerInfo",
    "ServerUnavailable",
    "StepAborted",
    "Tensor",
    "TensorNorm",
    "Tls",
    "connect",
    "default_client",
]
