"""Trains a character transformer in one way; --help has the ways.

python3 examples/python/train.py --mode streamed --server 127.0.0.1:50051
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
from typing import Optional

import gradclip
import torch
from gradclip.torch import SharedGradients, clip_grad_norm_
from model import Transformer
from plot import draw
from record import Record
from text import Text

MODES = ("torch", "torch-exact", "compat", "streamed", "shared", "data-parallel", "sharded")
TOGETHER = ("data-parallel", "sharded")
LICENSE = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The same for all modes, so that they can be compared."""

    server: str = "127.0.0.1:50051"
    steps: int = 50
    max_norm: float = 0.5
    learning_rate: float = 3e-3
    context: int = 64
    sequences: int = 16
    seed: int = 1
    dtype: str = "float32"
    text: pathlib.Path = LICENSE


def prepare(settings: Settings) -> tuple[Text, Transformer]:
    """The same text and the same model, to the bit, in every process."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    text = Text(settings.text, settings.context, settings.sequences, settings.seed)
    model = Transformer(text.characters, settings.context)
    return text, model.to(getattr(torch, settings.dtype))


def connect(settings: Settings) -> gradclip.Client:
    return gradclip.connect(settings.server, timeout=60, shared_bytes=0)


def torch_norm(model: Transformer) -> float:
    """PyTorch's norm. Changes nothing, as no norm is over infinity."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf))


def clip_by_exact_norms(model: Transformer, max_norm: float) -> torch.Tensor:
    """What torch.nn.utils.clip_grad_norm_ does, but for its sums, which are float64's, rounded."""
    grads = [one.grad for one in model.parameters()]
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64).to(one.dtype) for one in grads]
    total_norm = torch.linalg.vector_norm(torch.stack(norms))
    coefficient = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
    for one in grads:
        one.mul_(coefficient)
    return total_norm


def train_alone(mode: str, settings: Settings) -> Record:
    """One process that has everything: all modes but data-parallel and sharded."""
    text, model = prepare(settings)
    client = connect(settings)
    shared: Optional[SharedGradients] = None
    if mode == "shared":
        shared = SharedGradients(model, client=client, require_shared=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    record = Record(mode)
    for step in range(settings.steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        for characters, following in text.pieces(step):
            part = model(characters, following) / text.PIECES
            part.backward()
            loss += part.detach()
        record.torch_norm.append(torch_norm(model))

        # This line is the only one in which the modes differ.
        if mode == "torch":
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_norm)
        elif mode == "torch-exact":
            norm = clip_by_exact_norms(model, settings.max_norm)
        elif mode == "compat":
            norm = clip_grad_norm_(
                model.parameters(), settings.max_norm, client=client, compat="torch"
            )
        elif shared is not None:
            norm = shared.clip_grad_norm_(settings.max_norm)
        else:
            norm = clip_grad_norm_(model.parameters(), settings.max_norm, client=client)

        record.clipped_norm.append(torch_norm(model))
        optimizer.step()
        record.add(loss, norm, settings.max_norm)
    record.finish(model.named_parameters())
    if shared is not None:
        shared.close()
    client.close()
    return record


def train(mode: str, settings: Settings) -> Record:
    if mode not in TOGETHER:
        return train_alone(mode, settings)
    from ranks import train_together  # which needs this module

    return train_together(mode, settings)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of steps; it must be at least 1')
    return int(text)


def add_settings(parser: argparse.ArgumentParser) -> None:
    defaults = Settings()
    parser.add_argument("--steps", type=positive, default=defaults.steps)
    parser.add_argument("--max-norm", type=float, default=defaults.max_norm)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="draws a PNG")
    parser.add_argument("--record", type=pathlib.Path, metavar="FILE", help="writes JSON")


def settings_of(given: argparse.Namespace, server: str) -> Settings:
    return Settings(server=server, steps=given.steps, max_norm=given.max_norm, seed=given.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a character transformer.")
    parser.add_argument("--mode", choices=MODES, default="streamed")
    parser.add_argument("--server", default=Settings.server, help="address; %(default)s")
    add_settings(parser)
    given = parser.parse_args()
    record = train(given.mode, settings_of(given, given.server))
    print("step  loss      norm      coefficient")
    for step in range(0, given.steps, max(1, given.steps // 10)):
        print(
            f"{step:4}  {record.loss[step]:.6f}  {record.norm[step]:.6f}"
            f"  {record.coefficient[step]:.6f}"
        )
    if given.record:
        record.save(given.record)
    if given.plot:
        draw([record], given.max_norm, given.plot)


if __name__ == "__main__":
    main()
