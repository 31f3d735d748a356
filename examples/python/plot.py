"""Norm and coefficient over the steps, as a PNG. Takes matplotlib."""

from __future__ import annotations

import pathlib

from record import Record


def draw(records: list[Record], max_norm: float, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    for index, record in enumerate(records):
        # The first is wide, so that one that lies on it shows both.
        style = {"linewidth": 1.2, "linestyle": "--"} if index else {"linewidth": 3, "alpha": 0.5}
        above.plot(record.norm, label=record.mode, **style)
        below.plot(record.coefficient, label=record.mode, **style)
    above.axhline(max_norm, color="grey", linewidth=0.8, linestyle=":", label="max_norm")
    above.set_ylabel("norm before clipping")
    above.set_ylim(bottom=0)
    above.legend()
    below.set_ylabel("coefficient")
    below.set_ylim(0, 1.05)
    below.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=80)
    pyplot.close(figure)
