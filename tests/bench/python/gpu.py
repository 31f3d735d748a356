"""Times clipping in place on a GPU: gradclip.torch.SharedGradients beside PyTorch.

One gradient, with the shapes of GPT-2 124M, in float32 and bfloat16, clipped and not clipped, by
torch.nn.utils.clip_grad_norm_ and with a server that measures the GPU's memory where it is, and
tells the coefficient by which torch multiplies. Each round has both, in changing order, and each
time ends when the GPU has done what was queued; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys

import gradclip
import torch
from common import (
    CLIPS_NOTHING,
    DTYPES,
    GPT2,
    TINY,
    Clip,
    arguments,
    measure,
    parameters_of,
    print_head,
    print_row,
    server,
)
from gradclip.torch import SharedGradients


def until_done(clip: Clip) -> Clip:
    """Clips and waits for the GPU."""

    def clip_and_wait(max_norm: float) -> None:
        clip(max_norm)
        torch.cuda.synchronize()

    return clip_and_wait


def compare(what: str, shapes: list[tuple[int, ...]], dtype: str, rounds: int, server: str) -> None:
    """Prints the rows of one dtype."""
    lent, own = (parameters_of(shapes, dtype, "cuda") for _ in range(2))
    torchs = f"PyTorch {torch.__version__}"
    with (
        gradclip.connect(server) as client,
        SharedGradients(lent, client=client, require_shared=True) as shared,
    ):
        ways = {
            "in place": until_done(shared.clip_grad_norm_),
            torchs: until_done(lambda max_norm: torch.nn.utils.clip_grad_norm_(own, max_norm)),
        }
        gigabytes = sum(one.numel() * one.element_size() for one in own) / 1e9
        norm = float(shared.clip_grad_norm_(CLIPS_NOTHING))
        for how, clips in (("clipped", norm), ("not clipped", None)):
            seconds = measure(ways, rounds, clips)
            told = f"{what}, {how}, in place / {torchs}"
            print_row(told, seconds["in place"], seconds[torchs], gigabytes, None)


def main() -> None:
    given = arguments(__doc__.splitlines()[0])
    if not torch.cuda.is_available():
        sys.exit(
            f"gpu.py: PyTorch {torch.__version__} of {sys.executable} has no GPU that it can use"
        )
    name, shapes = ("3 small tensors", TINY) if given.quick else ("GPT-2 124M", GPT2)
    gpu = torch.cuda.get_device_name()
    with server("--backend=cuda", "--allow-cuda-ipc") as address:
        print_head(gpu, given.rounds, "gradclip.torch.SharedGradients on the GPU, calls included")
        try:
            for short, dtype in DTYPES.items():
                compare(f"{name} {short}", shapes, dtype, given.rounds, address)
        except (gradclip.GradClipError, ValueError) as error:
            sys.exit(f"gpu.py: the gradients on {gpu} are not shared: {error}")


if __name__ == "__main__":
    main()
