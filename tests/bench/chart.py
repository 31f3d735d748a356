"""Draws what `./dev bench --shared --json FILE` found beside PyTorch, as an SVG bar chart.

    python3 tests/bench/chart.py FILE tests/bench/shared.svg
"""
import html
import json
import sys

ROW, BAR, LABEL, SCALE, MARGIN = 44, 14, 330, 420, 20
OURS, THEIRS, TEXT = "#2563eb", "#9ca3af", "#6b7280"


def text(x, y, words, anchor="start", weight="normal"):
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-family="sans-serif" font-size="13" '
        f'font-weight="{weight}" fill="{TEXT}" text-anchor="{anchor}">{html.escape(words)}</text>'
    )


def bar(x, y, length, colour):
    return f'<rect x="{x}" y="{y:.0f}" width="{max(length, 1):.0f}" height="{BAR}" fill="{colour}"/>'


def draw(report):
    machine = report["machine"]
    (section,) = [one for one in report["sections"] if one["name"] == "shared"]
    rows = [row for row in section["rows"] if row["limit_is"].startswith("PyTorch")]
    if not rows:
        sys.exit("the report has no figures of PyTorch: it was not installed where they were taken")
    longest = max(1, *(1 / row["ratio"] for row in rows))
    top = 64
    parts = [text(MARGIN, 24, "Time to clip a gradient: torch.nn.utils.clip_grad_norm_ = 100 %", weight="bold")]
    parts.append(text(MARGIN, 44, f"{machine['processor']}, {machine['cores']} cores, {machine['date']}; shorter is faster"))
    for index, row in enumerate(rows):
        y = top + index * ROW
        parts.append(text(LABEL - 10, y + BAR + 4, row["what"], "end"))
        for line, (share, colour, name) in enumerate(
            ((1 / row["ratio"], OURS, "GradClip"), (1, THEIRS, row["limit_is"].split(",")[0]))
        ):
            length = share / longest * SCALE
            parts.append(bar(LABEL, y + line * (BAR + 2), length, colour))
            parts.append(text(LABEL + length + 6, y + line * (BAR + 2) + 12, f"{name} {100 * share:.0f} %"))
    width, height = LABEL + SCALE + 170, top + len(rows) * ROW + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as figures:
        picture = draw(json.load(figures))
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        out.write(picture)
