"""report.py OBJECT COMPILER [--check | --write]: what the compiler made of the kernels in OBJECT.

COMPILER is what `nvcc --version` calls itself, such as 13.0.88. cuobjdump and nvdisasm must be on the PATH.
Prints a row for each kernel and architecture and, with --check, what is wrong, with exit status 1:
  - by any compiler: registers that spill, a stack, elements changed by less than 16 bytes at a time, or
    loads that wait for one another or for the kind of memory they go to;
  - by the compiler that kernels.txt is of: rows that differ from those there.
--write puts the rows into kernels.txt.
"""
import collections
import difflib
import pathlib
import re
import subprocess
import sys

KEPT = pathlib.Path(__file__).with_name("kernels.txt")
WIDTHS = (16, 32, 64, 128)
# Resident warps of a multiprocessor, by architecture, and how many a thread block has (kWarps).
MOST_WARPS = {75: 32, 80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
BLOCK_WARPS = 8
LEAST_BATCH = 4

LEGEND = """\
# What nvcc {} makes of kernels.cu. Written by ./dev kernels --write.
# warps: how many a multiprocessor holds, as far as registers go. shared: bytes; 1,024 of them are CUDA's from sm_90 on.
# spills: loads from and stores to local memory. loads, stores: instructions in the code, by width in bits;
#   "234 6x32": 234 loads; 6 batches of up to 32, issued before the first of their results is used. Batches
#   of less than half the longest (the ends of blocks) are not counted, nor is how often code runs.
"""


def readable(symbol):
    """Measure<p=2> for _ZN8gradclip4cuda...kernels_cu_c23a6a347MeasureILNS_8NormKindE1EEEv..."""
    length, rest = re.search(r"kernels_cu_[0-9a-f]{8}(\d+)(.*)", symbol).groups()
    name, rest = rest[:int(length)], rest[int(length):]
    kind = re.match(r"ILNS_8NormKindE(\d)E", rest)
    return f"{name}<p={['1', '2', 'inf'][int(kind[1])]}>" if kind else name


def dump(option, path):
    """Lines of cuobjdump, each with the architecture and the kernel that it is about."""
    text = subprocess.run(["cuobjdump", option, path], check=True, capture_output=True, text=True).stdout
    architecture = kernel = None
    for line in text.splitlines():
        if found := re.match(r"\s*arch = sm_(\d+)", line):
            architecture, kernel = int(found[1]), None
        elif found := re.match(r"\s*Function\s?:? (\S+?):?$", line):
            kernel = readable(found[1])
        elif kernel:
            yield (kernel, architecture), line


def width(operation):
    for part, bits in (("U8", 8), ("S8", 8), ("U16", 16), ("S16", 16), ("64", 64), ("128", 128), ("256", 256)):
        if part in operation.split("."):
            return bits
    return 32


def batches(instructions):
    """Counts (width, length) of the loads that are issued before the first of their results is used."""
    targets = {int(target, 16) for _, operation, operands in instructions
               if operation.startswith(("BRA", "BSSY", "CALL")) for target in re.findall(r"0x([0-9a-f]+)", operands)}
    found, waited_for, lengths = collections.Counter(), set(), collections.Counter()
    for address, operation, operands in instructions:
        registers = [int(register) for register in re.findall(r"\bR(\d+)\b", operands)]
        loads = operation.startswith(("LDG.", "LD."))
        ends = operation.startswith(("BRA", "BRX", "CALL", "RET", "EXIT"))
        if ends or address in targets or waited_for.intersection(registers[loads:]):
            found.update(lengths.items())
            waited_for.clear()
            lengths.clear()
        if loads:
            bits = width(operation)
            lengths[bits] += 1
            waited_for.update(range(registers[0], registers[0] + max(1, bits // 32)))
    return found


class Kernel:
    def __init__(self, name, architecture, usage, instructions):
        self.name, self.architecture, self.usage = name, architecture, usage
        operations = [operation for _, operation, _ in instructions]
        self.spills = sum(operation.startswith(("LDL", "STL")) for operation in operations)
        self.generic = sum(operation.startswith(("LD.", "ST.")) for operation in operations)
        self.loads = collections.Counter(width(o) for o in operations if o.startswith(("LDG.", "LD.")))
        self.stores = collections.Counter(width(o) for o in operations if o.startswith(("STG.", "ST.")))
        self.batches = batches(instructions)

    def longest(self, bits):
        return max((length for width, length in self.batches if width == bits), default=0)

    def warps(self):
        registers = -(-self.usage["REG"] // 8) * 8
        fit = 65536 // (registers * 32) // BLOCK_WARPS * BLOCK_WARPS
        return min(fit, MOST_WARPS.get(self.architecture, fit))

    def row(self):
        cells = [self.name, f"sm_{self.architecture}", self.usage["REG"], self.warps(), self.usage["STACK"],
                 self.spills, self.usage["SHARED"]]
        for bits in WIDTHS:
            longest = self.longest(bits)
            count = sum(n for (w, length), n in self.batches.items() if w == bits and 2 * length >= longest)
            cells.append(f"{self.loads[bits]} {count}x{longest}" if longest else "-")
        return cells + [self.stores[bits] or "-" for bits in WIDTHS]

    def problems(self):
        if self.usage["STACK"] or self.usage["LOCAL"]:
            yield f"has a stack of {max(self.usage['STACK'], self.usage['LOCAL'])} bytes"
        if self.spills:
            yield f"spills: {self.spills} accesses to local memory"
        if self.generic:
            yield f"{self.generic} accesses are not known to be to global memory"
        if self.name in ("Scale", "AssignZero") and not self.stores[128]:
            yield "stores no 128 bits at once"
        if self.name == "Scale" and not self.loads[128]:
            yield "loads no 128 bits at once"
        if self.name.startswith("Measure"):
            for bits in (16, 32, 64):
                if self.longest(bits) < LEAST_BATCH:
                    yield f"has at most {self.longest(bits)} loads of {bits} bits on their way at once"


def read(path):
    usages, instructions = {}, collections.defaultdict(list)
    for of, line in dump("-res-usage", path):
        if "REG:" in line:
            usages[of] = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    for of, line in dump("-sass", path):
        if found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line):
            instructions[of].append((int(found[1], 16), found[2], found[3]))
    if not usages or usages.keys() != instructions.keys():
        sys.exit(f"{path}: cuobjdump names no kernels, or not all of them")
    return [Kernel(*of, usages[of], instructions[of]) for of in sorted(usages)]


def table(kernels, compiler):
    head = ["kernel", "arch", "registers", "warps", "stack", "spills", "shared"]
    head += [f"{what}{bits}" for what in ("loads", "stores") for bits in WIDTHS]
    rows = [head] + [[str(cell) for cell in kernel.row()] for kernel in kernels]
    sizes = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes)).rstrip() for row in rows]
    return LEGEND.format(compiler) + "\n".join(lines) + "\n"


def main(path, compiler, mode=None):
    kernels = read(path)
    new = table(kernels, compiler)
    if mode == "--write":
        KEPT.write_text(new)
    elif mode is None:
        print(new, end="")
    problems = [f"{k.name} for sm_{k.architecture} {problem}" for k in kernels for problem in k.problems()]
    kept = KEPT.read_text() if KEPT.exists() else ""
    if mode == "--check" and f"nvcc {compiler} " not in kept:
        print(f"kernels.txt is of another compiler than nvcc {compiler}: its rows are not compared")
    elif mode == "--check" and new != kept:
        sys.stdout.writelines(difflib.unified_diff(kept.splitlines(True), new.splitlines(True), "kernels.txt", "now", n=0))
        problems.append("kernels.txt is not what the compiler does now; where that is meant: ./dev kernels --write")
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
