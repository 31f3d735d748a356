"""What a run did, and how far two runs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable

import torch
from torch import Tensor


@dataclasses.dataclass
class Record:
    """One number for each step, as float32 has it: the same number is the same bits.

    coefficient: of the norm, as both compute it.
    torch_norm, clipped_norm: PyTorch's norm of the same gradients, before and after clipping; empty
        where no process had all of them.
    parameters: by name, a digest of the bytes after the last step.
    """

    mode: str
    loss: list[float] = dataclasses.field(default_factory=list)
    norm: list[float] = dataclasses.field(default_factory=list)
    coefficient: list[float] = dataclasses.field(default_factory=list)
    torch_norm: list[float] = dataclasses.field(default_factory=list)
    clipped_norm: list[float] = dataclasses.field(default_factory=list)
    parameters: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, loss: Tensor, norm: Tensor, max_norm: float) -> None:
        self.loss.append(float(loss))
        self.norm.append(float(norm))
        self.coefficient.append(min(1.0, max_norm / (float(norm) + 1e-6)))

    def finish(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        for name, one in parameters:
            data = one.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
            self.parameters[name] = hashlib.sha256(data).hexdigest()

    def save(self, path: pathlib.Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: pathlib.Path) -> Record:
        return cls(**json.loads(path.read_text()))


def differences(a: Record, b: Record) -> list[str]:
    """Where the bits of two runs are not the same; empty where they are."""
    found = []
    for what in ("loss", "norm", "coefficient"):
        pairs = zip(getattr(a, what), getattr(b, what))
        step = next((step for step, (x, y) in enumerate(pairs) if x != y), None)
        if step is not None or len(getattr(a, what)) != len(getattr(b, what)):
            found.append(f"{what} from step {step}")
    if a.parameters != b.parameters:
        found.append("parameters at the end")
    return found


def largest(a: list[float], b: list[float], relative: bool = False) -> float:
    """The largest difference of two runs' numbers."""
    return max((abs(x - y) / (abs(y) if relative else 1) for x, y in zip(a, b)), default=0.0)
