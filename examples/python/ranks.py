"""Two processes that train one model: modes data-parallel and sharded."""

from __future__ import annotations

import os
import pathlib
import tempfile
import uuid

import torch
import torch.distributed as dist
import torch.multiprocessing
from gradclip.torch import clip_grad_norm_, group_of_process
from record import Record, differences
from text import Text
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from train import Settings, connect, prepare

RANKS = Text.PIECES


def train_together(mode: str, settings: Settings) -> Record:
    """Trains in two processes, which must have seen the same losses and norms."""
    with tempfile.TemporaryDirectory() as folder:
        job = f"{mode} {uuid.uuid4()}"
        torch.multiprocessing.spawn(
            _rank, (mode, settings, job, folder), nprocs=RANKS, daemon=False
        )
        records = [Record.load(pathlib.Path(folder) / str(rank)) for rank in range(RANKS)]
    # Each has the digests of its own parameters.
    parameters = {name: one for record in records for name, one in record.parameters.items()}
    for record in records:
        record.parameters = parameters
    found = differences(records[0], records[1])
    if found:
        raise RuntimeError(f"{mode}: the ranks differ in {', '.join(found)}")
    return records[0]


def _rank(rank: int, mode: str, settings: Settings, job: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    record = Record(mode)
    if mode == "data-parallel":
        _data_parallel(settings, job, record)
    else:
        _sharded(settings, job, record)
    record.save(pathlib.Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


def _data_parallel(settings: Settings, job: str, record: Record) -> None:
    """All parameters, and one piece of each batch.

    DistributedDataParallel gives both ranks the mean of their gradients. Each rank clips and
    updates its half of the parameters, and gets the others from the rank that did (as ZeRO does).
    """
    rank = dist.get_rank()
    text, model = prepare(settings)
    parallel = DistributedDataParallel(model)
    named = list(model.named_parameters())
    owner = {name: index % RANKS for index, (name, _) in enumerate(named)}
    own = [(name, one) for name, one in named if owner[name] == rank]
    optimizer = torch.optim.AdamW([one for _, one in own], lr=settings.learning_rate)
    with connect(settings) as client:
        for step in range(settings.steps):
            model.zero_grad(set_to_none=True)
            characters, following = text.pieces(step)[rank]
            part = parallel(characters, following)
            part.backward()

            # Each counts its own half: the norm is of both.
            norm = clip_grad_norm_(
                [one for _, one in own],
                settings.max_norm,
                client=client,
                group=group_of_process(job, step),
            )
            optimizer.step()
            for name, one in named:
                dist.broadcast(one.detach(), owner[name])
            loss = part.detach() / RANKS
            dist.all_reduce(loss)
            record.add(loss, norm, settings.max_norm)
    record.finish(named)


def _sharded(settings: Settings, job: str, record: Record) -> None:
    """Half of the layers, and the whole batch: a pipeline.

    Rank 0 sends what comes out of its half, and gets back that one's gradient.
    """
    rank = dist.get_rank()
    text, model = prepare(settings)
    half = model.front if rank == 0 else model.back
    named = [
        (name, one)
        for name, one in model.named_parameters()
        if name.startswith("front.") == (rank == 0)
    ]
    optimizer = torch.optim.AdamW(half.parameters(), lr=settings.learning_rate)
    with connect(settings) as client:
        for step in range(settings.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros(())
            for characters, following in text.pieces(step):
                if rank == 0:
                    _first_half(half(characters))
                else:
                    loss += _second_half(model, following)
            dist.broadcast(loss, 1)

            # Each has the gradients of its own half only: the norm is of both.
            norm = clip_grad_norm_(
                half.parameters(),
                settings.max_norm,
                client=client,
                group=group_of_process(job, step),
            )
            optimizer.step()
            record.add(loss, norm, settings.max_norm)
    record.finish(named)


def _first_half(out: Tensor) -> None:
    dist.send(out.detach(), 1)
    gradient = torch.empty_like(out)
    dist.recv(gradient, 1)
    out.backward(gradient)


def _second_half(model: torch.nn.Module, following: Tensor) -> Tensor:
    came = torch.empty(*following.shape, model.back.head.in_features)
    dist.recv(came, 0)
    came.requires_grad_()
    loss: Tensor = model.back(came, following) / Text.PIECES
    loss.backward()
    dist.send(came.grad, 0)
    return loss.detach()
