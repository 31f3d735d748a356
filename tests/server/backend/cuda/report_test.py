"""What report.py says of machine code, in place of cuobjdump's."""
import contextlib
import io
import pathlib
import sys
import tempfile
import types
import unittest
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[4] / "server/backend/cuda"))
import report  # noqa: E402

SCALE = "_ZN8gradclip4cuda43_GLOBAL__N__b996f02f_10_kernels_cu_c23a6a345ScaleENS_10DeviceRunsE"
MEASURE = "_ZN8gradclip4cuda43_GLOBAL__N__b996f02f_10_kernels_cu_c23a6a347MeasureILNS_8NormKindE1EEEvNS_10DeviceRunsE"
COPY = ["LDG.E.128 R8, desc[UR4][R2.64]", "STG.E.128 desc[UR4][R2.64], R8"]
BATCHES = [instruction for width in (".U16", "", ".64") for instruction in
           [f"LDG.E{width} R{8 + 2 * i}, [R2.64+{hex(64 * i)}]" for i in range(4)] +
           [f"DADD R4, R{8 + 2 * i}, R4" for i in range(4)]]


class Report(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.enterContext(mock.patch.object(report, "KEPT", pathlib.Path(folder.name) / "kernels.txt"))

    def report(self, instructions, mode=None, compiler="13.0.88", symbol=SCALE, stack=0):
        """The exit status and what is printed."""
        lines = [f"\t/*{16 * i:04x}*/  {instruction} ;  /* 0x0 */" for i, instruction in enumerate(instructions)]
        texts = {
            "-res-usage": f"arch = sm_90\n Function {symbol}:\n  REG:40 STACK:{stack} SHARED:0 LOCAL:0",
            "-sass": "\n".join(["arch = sm_90", f"\t\tFunction : {symbol}"] + lines)}
        out = io.StringIO()
        with mock.patch.object(report.subprocess, "run",
                               lambda command, **_: types.SimpleNamespace(stdout=texts[command[1]])), \
                contextlib.redirect_stdout(out):
            status = report.main("kernels.o", compiler, mode)
        return status, out.getvalue()

    def test_names_kernels_and_counts_what_they_access(self):
        status, text = self.report(BATCHES, symbol=MEASURE)
        self.assertFalse(status)
        self.assertRegex(text, r"\nMeasure<p=2> +sm_90 +40 +48 +0 +0 +0 +4 1x4 +4 1x4 +4 1x4 +- ")

    def test_reports_spills_and_stacks(self):
        status, text = self.report(COPY + ["STL [R1], R4", "@P0 LDL R4, [R1]"], "--check", stack=8)
        self.assertTrue(status)
        self.assertIn("Scale for sm_90 has a stack of 8 bytes\nScale for sm_90 spills: 2 accesses", text)

    def test_reports_loads_that_wait_for_one_another(self):
        waiting = [i for _ in range(4) for i in ("LDG.E.U16 R8, [R2.64]", "DADD R4, R8, R4")]
        status, text = self.report(BATCHES[8:] + waiting, "--check", symbol=MEASURE)
        self.assertTrue(status)
        self.assertIn("Measure<p=2> for sm_90 has at most 1 loads of 16 bits on their way at once", text)

    def test_reports_narrow_and_generic_accesses(self):
        status, text = self.report(["LDG.E R8, [R2.64]", "ST.E [R2.64], R8"], "--check")
        self.assertTrue(status)
        for problem in ("1 accesses are not known to be to global memory", "stores no 128 bits", "loads no 128 bits"):
            self.assertIn(f"Scale for sm_90 {problem}", text)

    def test_compares_rows_of_the_same_compiler_alone(self):
        self.assertFalse(self.report(COPY, "--write")[0])
        self.assertEqual(self.report(COPY, "--check"), (False, ""))
        status, text = self.report(COPY + COPY, "--check")
        self.assertTrue(status)
        self.assertRegex(text, r"(?m)^-Scale .* 1 1x1 .*\n\+Scale .* 2 2x1 ")
        self.assertFalse(self.report(COPY + COPY, "--check", compiler="13.1.1")[0])


if __name__ == "__main__":
    unittest.main()
