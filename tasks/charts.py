"""Pictures of a comparison: confusion, differences with error bars, calibration, uplift by seed. As SVG or PNG.

Drawn without pyplot, so that nothing global is kept and no display is asked for. In SVG, text and lines take the colour of
the page around them (light or dark), and letters stay letters.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#010203", "#7f7f81"  # the ink becomes the page's own colour
GOOD, BAD, BAR, OTHER = "#2a9d63", "#d1495b", "#5b7bd5", "#c98a2b"  # readable on white and on black
LONGEST = 22  # letters of a class name
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x
    "font.size": 9,
    "font.family": ["sans-serif"],
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class Bar(NamedTuple):
    """A difference with its interval; surely is whether it stands after correction for how many there are."""

    name: str
    value: float
    low: float
    high: float
    surely: bool


class Panel(NamedTuple):
    """Differences of one metric, a row a class."""

    title: str
    bars: Sequence[Bar]


Draw = Callable[["Figure"], None]


def svg(draw: Draw, size: tuple[float, float], *, label: str) -> str:
    """A drawing of so many inches as an <svg> element; the same drawing gives the same text."""
    sink = io.StringIO()
    with _figure(size, salt=label) as figure:
        draw(figure)
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    body = text[text.index("<svg") :].replace(INK, "currentColor")
    return body.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """A drawing of so many inches as PNG on white."""
    sink = io.BytesIO()
    with _figure(size, salt="") as figure:
        draw(figure)
        figure.savefig(sink, format="png", facecolor="white", metadata={"Software": None})
    return sink.getvalue()


def forest(panels: Sequence[Panel]) -> tuple[Draw, tuple[float, float]]:
    """Differences with error bars, panel by panel: green surely above 0, red surely below, grey neither."""
    rows = max(len(panel.bars) for panel in panels)
    ends = [abs(end) for panel in panels for bar in panel.bars for end in (bar.low, bar.high)]
    reach = max([0.02, *ends]) * 1.08

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(every, panels, strict=True):
            _bars(axes, panel, reach)
        every[0].set_yticks(range(rows), [_short(bar.name) for bar in panels[0].bars])
        every[0].invert_yaxis()

    return draw, (2.0 + 2.3 * len(panels), 0.9 + 0.27 * rows)


def confusion(table: NDArray[np.int64], names: Sequence[str], *, difference: bool) -> tuple[Draw, tuple[float, float]]:
    """A confusion matrix (n, n), true classes as rows; colour is the share of the row, figures are counts."""
    shares = table / np.maximum(1, np.abs(table).sum(axis=1, keepdims=True))
    side = max(2.6, 1.5 + 0.33 * len(names))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        right = np.eye(len(names), dtype=bool)
        good = np.where(right, shares, -shares) if difference else np.where(right, shares, 0.0)
        bad = -good if difference else np.where(right, 0.0, shares)
        for strength, colour in ((good, GOOD), (bad, BAD)):
            axes.imshow(_tinted(np.clip(strength, 0.0, 1.0), colour), interpolation="nearest")
        places = range(len(names))
        axes.set_xticks(places, [_short(name) for name in names], rotation=90)
        axes.set_yticks(places, [_short(name) for name in names])
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for side_name in ("left", "bottom"):
            axes.spines[side_name].set_visible(False)
        for row, column in zip(*np.nonzero(table), strict=True):
            told = f"{table[row, column]:+d}" if difference else f"{table[row, column]:d}"
            axes.text(column, row, told, ha="center", va="center", fontsize=7)

    return draw, (side, side)


def calibration(sides: Sequence[tuple[str, Sequence[dict[str, float]]]]) -> tuple[Draw, tuple[float, float]]:
    """How often a model is right where it is so sure, a curve a model; larger points hold more samples."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for (name, bins), colour in zip(sides, (OTHER, BAR), strict=False):
            some = [one for one in bins if one["samples"]]
            x, y = [one["confidence"] for one in some], [one["accuracy"] for one in some]
            most = max((one["samples"] for one in some), default=1)
            axes.plot(x, y, color=colour, linewidth=1.5, label=_short(name))
            axes.scatter(x, y, s=[8 + 60 * one["samples"] / most for one in some], color=colour)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right")
        axes.legend(frameon=False, loc="upper left")

    return draw, (4.2, 3.6)


def by_seed(rows: Sequence[dict[str, float]], seeds: Sequence[int], metric: str) -> tuple[Draw, tuple[float, float]]:
    """What either arm reaches with each training seed."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            up = row["campaign"] >= row["control"]
            axes.plot(
                [row["control"], row["campaign"]], [place, place], color=GOOD if up else BAD, linewidth=2, zorder=1
            )
        for side, colour, marker in (("control", OTHER, "o"), ("campaign", BAR, "D")):
            axes.scatter(
                [row[side] for row in rows], range(len(rows)), color=colour, marker=marker, label=side, zorder=2
            )
        axes.set_yticks(range(len(rows)), [f"seed {seed}" for seed in seeds])
        axes.invert_yaxis()
        axes.set_xlabel(_short(metric, 60))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw, (5.6, 1.0 + 0.28 * max(2, len(rows)))


def _bars(axes: Axes, panel: Panel, reach: float) -> None:
    for place, bar in enumerate(panel.bars):
        colour = GREY if not bar.surely else GOOD if bar.value > 0 else BAD
        axes.plot([bar.low, bar.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([bar.value], [place], color=colour, marker="o", markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-0.6, len(panel.bars) - 0.4)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _tinted(strength: NDArray[np.float64], colour: str) -> NDArray[np.float64]:
    """One colour (n, n, 4) that is as opaque as the strength, so that any background shows through."""
    rgb = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return np.dstack([*(np.full(strength.shape, part) for part in rgb), 0.85 * strength])


@contextmanager
def _figure(size: tuple[float, float], *, salt: str) -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure as New

    style: Any = {**STYLE, "svg.hashsalt": f"dipnet {salt}"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class name in letters that the font lacks; a browser has them
        yield New(figsize=size, layout="constrained")


def _short(name: str, longest: int = LONGEST) -> str:
    """A name on one line, cut where it is long."""
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
