"""Times torch.nn.utils.clip_grad_norm_ on an F32 gradient of tensors of the shapes given ("82x96").

Prints PyTorch's version and threads, then for each line read the seconds that one clip took.
"""
import sys
import time

try:
    import torch
except ImportError as error:
    sys.exit(f"python3 has no PyTorch ({error})")

parameters = []
for argument in sys.argv[1:]:
    shape = [int(extent) for extent in argument.split("x")]
    parameter = torch.nn.Parameter(torch.empty(shape))
    parameter.grad = torch.rand(shape)
    parameters.append(parameter)
print(f"{torch.__version__}, threads: {torch.get_num_threads()}", flush=True)

for _ in sys.stdin:
    begin = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    print(time.perf_counter() - begin, flush=True)
