"""The messages of the contract, proto/gradclip/v1/gradclip.proto.

They are made from the contract's descriptor, which the build compiles, and not by protoc's Python
code: that code demands a protobuf at least as new as its protoc. The pool is the package's own, so
that a program may have generated code of the same contract beside it. _contract.pyi, which the
build makes, has the types.
"""

from __future__ import annotations

import os
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load() -> Any:
    with open(os.path.join(os.path.dirname(__file__), "contract.binpb"), "rb") as file:
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for one in files.file:
        pool.AddSerializedFile(one.SerializeToString())
    return pool


_POOL = _load()


def _message(name: str) -> Any:
    descriptor = _POOL.FindMessageTypeByName("gradclip.v1." + name)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_POOL).GetPrototype(descriptor)


def _number(enum: str, name: str) -> int:
    values = _POOL.FindEnumTypeByName("gradclip.v1." + enum).values_by_name
    return int(values[name].number)


ClipGradNormResponse = _message("ClipGradNormResponse")
ClipGradNormStart = _message("ClipGradNormStart")
ComputeNormResponse = _message("ComputeNormResponse")
ComputeNormStart = _message("ComputeNormStart")
GetServerInfoRequest = _message("GetServerInfoRequest")
GetServerInfoResponse = _message("GetServerInfoResponse")
Group = _message("Group")
NormResult = _message("NormResult")
SharedRanges = _message("SharedRanges")

DTYPE_BFLOAT16 = _number("DType", "DTYPE_BFLOAT16")
DTYPE_FLOAT16 = _number("DType", "DTYPE_FLOAT16")
DTYPE_FLOAT32 = _number("DType", "DTYPE_FLOAT32")
DTYPE_FLOAT64 = _number("DType", "DTYPE_FLOAT64")
NONFINITE_ERROR = _number("NonfinitePolicy", "NONFINITE_ERROR")
NONFINITE_PROPAGATE = _number("NonfinitePolicy", "NONFINITE_PROPAGATE")
NONFINITE_SKIP = _number("NonfinitePolicy", "NONFINITE_SKIP")
NONFINITE_ZERO = _number("NonfinitePolicy", "NONFINITE_ZERO")
REPLY_COEFFICIENT = _number("ReplyMode", "REPLY_COEFFICIENT")
REPLY_GRADIENT = _number("ReplyMode", "REPLY_GRADIENT")
REPLY_GRADIENT_IF_CHANGED = _number("ReplyMode", "REPLY_GRADIENT_IF_CHANGED")
