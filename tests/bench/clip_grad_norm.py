"""Times torch.nn.utils.clip_grad_norm_ on a gradient of one dtype and tensors of the shapes given:
BF16 1:82x96 12:768 are one of 82 by 96 elements and 12 of 768.

Prints PyTorch's version and the number of threads that is the fastest here, then for each max_norm
read the seconds that one clip by it took.
"""
import os
import sys
import time

try:
    import torch
except ImportError as error:
    sys.exit(f"python3 has no PyTorch ({error})")

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def seconds_of_clip(max_norm):
    begin = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return time.perf_counter() - begin


parameters = []
for argument in sys.argv[2:]:
    count, shape = argument.split(":")
    for _ in range(int(count)):
        shape_list = [int(extent) for extent in shape.split("x")]
        parameter = torch.nn.Parameter(torch.empty(shape_list, dtype=DTYPES[sys.argv[1]]))
        parameter.grad = torch.rand(shape_list).to(DTYPES[sys.argv[1]])
        parameters.append(parameter)

fastest = (float("inf"), 1)
for threads in range(1, len(os.sched_getaffinity(0)) + 1):
    torch.set_num_threads(threads)
    fastest = min(fastest, (min(seconds_of_clip(0.5) for _ in range(3)), threads))
torch.set_num_threads(fastest[1])
print(f"{torch.__version__}, threads: {fastest[1]}", flush=True)

for line in sys.stdin:
    print(seconds_of_clip(float(line)), flush=True)
