"""Draws the dashboards from a Prometheus that runs, for those who have no Grafana at hand:

python -m grafana.draw --prometheus http://127.0.0.1:9090 --seconds 3600
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from grafana.live import Line, Prometheus, Span, dashboards, filled

COLUMNS = 24  # of Grafana's grid
CELL = (0.72, 0.34)  # inches of a cell of it
DPI, COLOURS = 84, 96  # small files: a picture of a dashboard has few colours
POINTS = 240  # over the whole time
LEGEND = 6  # lines named below a graph
PALETTE = ("#2f6fb3", "#d9822b", "#3a9a5b", "#c23b3b", "#7d5ba6", "#8c6d46", "#d36ba6", "#6b7480", "#a3a833", "#2aa5b5")
INK, FAINT = "#2b2f36", "#8a919c"
STATES = {"green": "#3a9a5b", "orange": "#e0a030", "red": "#c23b3b"}
_SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def number(value: float, unit: str) -> str:
    """A value as Grafana would write it in this unit."""
    if value == 0:
        return "0"
    if unit == "s":
        size, name = next((pair for pair in _TIMES if abs(value) >= pair[0]), _TIMES[-1])
        return f"{value / size:.3g} {name}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    size, name = next((pair for pair in _SIZES if abs(value) >= pair[0]), (1.0, ""))
    tail = unit.removeprefix("suffix:") if unit.startswith("suffix:") else {"reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value / size:.3g}{name}{tail}"


def legend(template: str, labels: Mapping[str, str]) -> str:
    """A line's name: its labels in the template's places."""
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def asked(panel: Any, prometheus: Prometheus, span: Span, interval: str) -> list[tuple[str, Line]]:
    """All lines of a panel with their names, in the order of these; times count from the span's start."""
    found = []
    for target in panel["targets"]:
        for line in prometheus.over(filled(target["expr"], interval), span):
            points = [(at - span.start, value) for at, value in line.points]
            found.append((legend(target["legendFormat"], line.labels) or panel["title"], line._replace(points=points)))
    return sorted(found, key=lambda pair: pair[0])


def draw(dashboard: Any, prometheus: Prometheus, span: Span, interval: str) -> Figure:
    """One dashboard on its own grid."""
    high = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) + 2
    figure = Figure(figsize=(COLUMNS * CELL[0], high * CELL[1]), facecolor="#f4f5f7")
    figure.text(0.008, 1 - 1.1 / high, dashboard["title"], fontsize=16, weight="bold", color=INK, va="center")
    figure.text(0.992, 1 - 1.1 / high, dashboard["description"], fontsize=11, color=FAINT, va="center", ha="right")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 2) / high
        if panel["type"] == "row":
            figure.text(0.008, top - 0.5 / high, panel["title"], fontsize=11, weight="bold", color=INK, va="center")
            continue
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        box = (left + 0.004, top - (place["h"] - 0.15) / high, width - 0.008, (place["h"] - 0.3) / high)
        _panel(figure, box, panel, asked(panel, prometheus, span, interval), span)
    return figure


def _panel(
    figure: Figure, box: tuple[float, float, float, float], panel: Any, lines: Sequence[tuple[str, Line]], span: Span
) -> None:
    left, bottom, width, height = box
    card = figure.add_axes(box, facecolor="white")
    card.set(xticks=[], yticks=[])
    card.spines[:].set_color("#dde0e5")
    inch = 1 / figure.get_figheight()
    card.text(0.02, 1 - 0.14 * inch / height, panel["title"], fontsize=9.5, weight="bold", color=INK, va="center")
    small = panel["type"] == "stat"
    below = 0.1 * inch if small else 0.56 * inch
    side = (1.05 if panel["type"] == "state-timeline" else 0.62) / figure.get_figwidth()
    inner = (left + side, bottom + below, width - side - 0.006, height - below - 0.32 * inch)
    axes = figure.add_axes(inner if not small else (left, bottom, width, height * 0.45))
    if not lines:
        axes.axis("off")
        axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", color=FAINT, fontsize=10)
    else:
        {"stat": _stat, "state-timeline": _states}.get(panel["type"], _graph)(axes, panel, lines, span)


def _stat(axes: Axes, panel: Any, lines: Sequence[tuple[str, Line]], span: Span) -> None:
    points = lines[0][1].points
    axes.fill_between([at for at, _ in points], [value for _, value in points], color=PALETTE[0], alpha=0.25, lw=0)
    axes.set(xlim=(0, span.end - span.start), ylim=(0, max(value for _, value in points) * 1.05 or 1))
    axes.axis("off")
    text = number(points[-1][1], panel["fieldConfig"]["defaults"]["unit"])
    axes.text(0.5, 0.85, text, transform=axes.transAxes, ha="center", fontsize=17, color=INK, weight="bold")


def _time(axes: Axes, span: Span) -> None:
    """Seconds or minutes since the start, whichever is shorter to write."""
    seconds = span.end - span.start
    size, name = (60, "min") if seconds > 600 else (1, "s")
    axes.set_xlim(0, seconds)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at / size:.0f} {name}"))
    axes.tick_params(labelsize=7.5, colors=FAINT, length=0)
    axes.spines[:].set_visible(False)


def _gaps(line: Line, span: Span) -> tuple[list[float], list[float]]:
    """The points, with a break where some are missing."""
    times: list[float] = []
    values: list[float] = []
    before = 0.0
    for at, value in line.points:
        if at - before > 1.5 * span.step and times:
            times.append(at)
            values.append(float("nan"))
        times.append(at)
        values.append(value)
        before = at
    return times, values


def _graph(axes: Axes, panel: Any, lines: Sequence[tuple[str, Line]], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = (defaults["custom"].get("stacking") or {}).get("mode") == "normal"
    if stacked:
        grid = sorted({at for _, line in lines for at, _ in line.points})
        rows = [[dict(line.points).get(at, 0.0) for at in grid] for _, line in lines]
        axes.stackplot(grid, rows, labels=[name for name, _ in lines], colors=PALETTE, alpha=0.75, lw=0)
    else:
        for index, (name, line) in enumerate(lines):
            axes.plot(*_gaps(line, span), label=name, color=PALETTE[index % len(PALETTE)], lw=1.3, marker=_marker(line))
    _time(axes, span)
    axes.set_ylim(
        bottom=0, top=None if axes.get_ylim()[1] > 0 and any(v for _, li in lines for _, v in li.points) else 1
    )
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, defaults["unit"])))
    axes.grid(axis="y", color="#e6e8ec", lw=0.7)
    axes.set_axisbelow(True)
    _legend(axes, [name for name, _ in lines])


def _marker(line: Line) -> str:
    """A single point would not be seen as a line."""
    return "." if len(line.points) == 1 else ""


def _legend(axes: Axes, lines: Sequence[str]) -> None:
    handles, _ = axes.get_legend_handles_labels()
    more = f" and {len(lines) - LEGEND} more" if len(lines) > LEGEND else ""
    names = [name if index < LEGEND - 1 else name + more for index, name in enumerate(lines[:LEGEND])]
    inch = axes.figure.dpi / axes.bbox.width
    axes.legend(
        handles[:LEGEND], names, loc="upper left", bbox_to_anchor=(-0.45 * inch, -0.1), ncols=3, fontsize=7.5, frameon=False,
        labelcolor=INK, handlelength=1, handletextpad=0.4, columnspacing=1.0, borderpad=0, labelspacing=0.3,
    )  # fmt: skip


def _states(axes: Axes, panel: Any, lines: Sequence[tuple[str, Line]], span: Span) -> None:
    meaning = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for row, (_, line) in enumerate(lines):
        for at, value in line.points:
            colour = STATES[meaning[f"{value:.0f}"]["color"]]
            axes.barh(row, span.step, left=at, height=0.7, color=colour, lw=0)
    _time(axes, span)
    axes.set(yticks=range(len(lines)), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticklabels([name for name, _ in lines])
    for option in meaning.values():
        axes.bar(0, 0, color=STATES[option["color"]], label=option["text"])
    _legend(axes, [option["text"] for option in meaning.values()])


def save(folder: Path, prometheus: Prometheus, span: Span, interval: str) -> list[Path]:
    """Draws all dashboards into a folder."""
    made = []
    for name, dashboard in dashboards().items():
        canvas = FigureCanvasAgg(draw(dashboard, prometheus, span, interval))
        canvas.figure.set_dpi(DPI)
        canvas.draw()  # type: ignore[no-untyped-call]
        size = (int(canvas.renderer.width), int(canvas.renderer.height))
        pixels = bytes(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        image = Image.frombuffer("RGBA", size, pixels).convert("RGB")
        made.append(folder / f"{name}.png")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(made[-1], optimize=True)
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m grafana.draw", description="Draw the dashboards as PNG.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--seconds", type=float, default=3600, help="how far back (3600)")
    parser.add_argument("--interval", default="1m", help="what rates are taken over (1m: four scrapes)")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the pictures go (here)")
    chosen = parser.parse_args()
    now = time.time()
    span = Span(now - chosen.seconds, now, max(1.0, chosen.seconds / POINTS))
    save(chosen.folder, Prometheus(chosen.prometheus), span, chosen.interval)


if __name__ == "__main__":
    main()
