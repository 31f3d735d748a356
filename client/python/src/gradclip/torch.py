"""torch.nn.utils.clip_grad_norm_ and its kin, by a GradClip server.

    from gradclip.torch import clip_grad_norm_
    total_norm = clip_grad_norm_(model.parameters(), max_norm=1.0)

Gradients are sent, or copied to memory that a server on this host reads (shared_bytes of
gradclip.connect), the coefficient comes back, and torch multiplies them in place. SharedGradients
saves the copy, too. Norm and coefficient are GradClip's: exact where torch rounds, overflows or
underflows. Otherwise they do what torch's functions are documented to do, but for this:

- norm_type is > 0 or infinity, max_norm >= 0; ValueError otherwise, where torch takes zero and
  negative ones.
- The total norm has the gradients' dtype, and at least float32; float64 where it is beyond float32.
- float16 and bfloat16 are multiplied by the coefficient in float32 and rounded once.
- Gradients that are sparse or neither float16, bfloat16, float32 nor float64, and two that are the
  same memory (torch would multiply them twice), raise ValueError.

compat="torch" rounds as the torch that is installed does: each tensor's exact norm to its dtype;
then torch takes the norm of those, the coefficient and the products. Of one norm all bits are
torch's. The norm is another where torch's own sums over a tensor's elements are off: those of
float32 and float64 are by some units in the last place, but 2-norms of bfloat16 hardly ever, as
torch sums them in float32, and norms of halves with another p by far in older versions, which sum
them in halves; and where dtypes are mixed, as newer versions then add up the tensors' norms in
another order. Where torch's sum over a tensor overflows or underflows, torch itself takes that
tensor's norm. What it can't do (float16 on the CPU, in some versions) is a RuntimeError.

Tensors may be of any mix of dtypes and devices; each is multiplied where it is. A server on this
host that uses the GPU, with --allow-cuda-ipc, measures those of CUDA there: they are copied on the
device, to memory that the client has from the CUDA driver and the server opens, once this thread's
current stream has done what is queued. Where that can't be, and from all other devices, they are
copied to the host.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
from torch import Tensor

from gradclip._torch_tensors import (
    EPSILON,
    Tensors,
    as_list,
    check,
    check_compat,
    clip_by_answer,
    declare,
    multiply,
    multiply_as_torch,
    nonfinite,
    norm_as_torch,
    norm_tensor,
)
from gradclip.client import Client
from gradclip.default import default_client
from gradclip.group import Group
from gradclip.shared_gradients import SharedGradients

__all__ = [
    "SharedGradients",
    "clip_grad_norm_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "group_of_process",
]


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: Optional[bool] = None,
    *,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
    compat: Optional[str] = None,
) -> Tensor:
    """Clips the gradients of parameters in place by the norm of all of them together.

    parameters: a tensor or an iterable of tensors; those whose .grad is None count as nothing.
    max_norm: the largest norm to leave; infinity measures only.
    norm_type: p of the p-norm: > 0, or infinity (or "inf") for the largest magnitude.
    error_if_nonfinite: raise NonfiniteGradientError, a RuntimeError, where the norm is NaN or
        infinite, before anything is changed. Else the gradients become 0 and NaN, as in torch.
    foreach: False multiplies tensor by tensor.
    client: of gradclip.connect(); by default gradclip.default_client().
    group: the gradients are one rank's part of a job's; all ranks get one norm.
    compat: "torch" rounds as torch does (see above). Not with a group, which torch has no norm of.

    Returns the norm before clipping, 0-d, on the first gradient's device.
    Raises GradClipError (gradclip.ServerUnavailable, ...), ValueError, TypeError; gradients are
    then as they were.
    """
    grads = [one.grad.detach() for one in as_list(parameters) if one.grad is not None]
    limit, p = check(max_norm, norm_type)
    as_torch = check_compat(compat, group)
    if not grads and group is None:
        return torch.tensor(0.0)
    answer = (client or default_client()).clip(
        declare(grads, written=True),
        max_norm=limit,
        norm_type=p,
        nonfinite="error" if error_if_nonfinite else "propagate",
        per_tensor=as_torch,
        group=group,
    )
    return clip_by_answer(answer, grads, limit, p, error_if_nonfinite, foreach, as_torch)


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: Optional[bool] = None,
    *,
    client: Optional[Client] = None,
    group: Optional[Group] = None,
    compat: Optional[str] = None,
) -> Tensor:
    """The norm of tensors (themselves, not their .grad) together; they are only read.

    The arguments, result and errors are those of clip_grad_norm_; foreach does nothing.
    """
    given = [one.detach() for one in as_list(tensors)]
    _, p = check(0.0, norm_type)
    as_torch = check_compat(compat, group)
    if not given and group is None:
        return torch.tensor(0.0)
    answer = (client or default_client()).compute_norm(
        declare(given, written=False), norm_type=p, per_tensor=as_torch, group=group
    )
    if as_torch:
        total_norm = norm_as_torch(answer, p, given)
    else:
        total_norm = norm_tensor(answer.total_norm, given)
    if error_if_nonfinite and not total_norm.isfinite():
        raise nonfinite(answer, p)
    return total_norm


def clip_grads_with_norm_(
    parameters: Tensors,
    max_norm: float,
    total_norm: Union[Tensor, float],
    foreach: Optional[bool] = None,
    *,
    compat: Optional[str] = None,
) -> None:
    """Clips the gradients of parameters in place by a norm that is known, as of get_total_norm().

    Multiplies by min(1, max_norm / (total_norm + 1e-6)). Asks no server. With compat="torch" the
    bits are those of torch for the same norm.
    """
    grads = [one.grad.detach() for one in as_list(parameters) if one.grad is not None]
    limit, _ = check(max_norm, 2.0)
    declare(grads, written=True)
    if check_compat(compat, None):
        multiply_as_torch(grads, limit, torch.as_tensor(total_norm))
        return
    if math.isinf(limit):
        return
    ratio = limit / (float(total_norm) + EPSILON)
    multiply(grads, ratio if math.isnan(ratio) else min(ratio, 1.0), foreach)


def group_of_process(job: str, step: int, **more: Any) -> Group:
    """A Group with the rank and world size that torch.distributed gives this process.

    Where that is not initialised, the variables RANK and WORLD_SIZE count.

    more: further fields of Group. Raises ValueError where neither is there.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Group(
            job, step, torch.distributed.get_rank(), torch.distributed.get_world_size(), **more
        )
    return Group.from_environment(job, step, **more)
