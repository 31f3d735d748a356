"""The golden cases of tests/data/conformance and the gradients of tests/data/gradients."""

import base64
import json
import math
import struct

from conftest import DATA

NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
CASES = json.loads((DATA / "conformance" / "clip_grad_norm.json").read_text())["cases"]
EXPECTED = json.loads((DATA / "gradients" / "expected.json").read_text())["files"]


def number(value):
    """The file has "inf" and "nan" as strings."""
    return value if value is None else float(value)


def tensors(case):
    """[(dtype's name, shape, bytearray)]"""
    return [
        (NAMES[one["dtype"]], tuple(one["shape"]), bytearray(base64.b64decode(one["data"])))
        for one in case["tensors"]
    ]


def is_exact(norm, exact, norm_type):
    """Whether a norm is as exact as GradClip promises."""
    if math.isnan(exact):
        return math.isnan(norm)
    if norm_type in (1, 2, math.inf):
        tolerance = 1e-12
    else:
        tolerance = 1e-12 / min(1, norm_type) + 1e-13
    return norm == exact or math.isclose(norm, exact, rel_tol=tolerance, abs_tol=0)


def read_safetensors(name):
    """{name: (dtype's name, shape, bytes)} of a gradient of tests/data/gradients."""
    data = (DATA / "gradients" / f"{name}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    return {
        key: (NAMES[one["dtype"]], tuple(one["shape"]), body[slice(*one["data_offsets"])])
        for key, one in header.items()
    }
