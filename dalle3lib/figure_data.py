"""The numbers behind a figure, taken from the figure itself when a notebook shows it.

``python -m dalle3lib run`` loads this module into the kernel as an IPython extension. Every
matplotlib figure that a cell shows then carries its numbers as ``text/csv`` beside its picture, and
the book offers them below it. What is drawn is what is written, so no chapter has to remember to
save it. Pictures and diagrams hold no numbers and get no table.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from IPython.core.formatters import BaseFormatter, catch_format_error
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from pandas import DataFrame
from traitlets import Unicode

MIME = "text/csv"
COLUMNS = ("panel", "series", "drawn_as", "x", "y")


class CSVFormatter(BaseFormatter):
    """What IPython calls for every object that is displayed; only figures answer.

    Printers registered for a type would not stay: matplotlib takes those of its figures away when
    pyplot is imported.
    """

    format_type = Unicode(MIME)

    @catch_format_error
    def __call__(self, shown: object) -> str | None:
        """The numbers of a figure, None for anything else."""
        return csv(shown) if isinstance(shown, Figure) else None


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Let the figures that this kernel shows carry their numbers."""
    display = shell.display_formatter
    display.formatters[MIME] = CSVFormatter(parent=display)
    display.active_types = [*display.active_types, MIME]


def csv(figure: Figure) -> str | None:
    """A figure's numbers as CSV, or None if it shows none."""
    found = table(figure)
    return found.to_csv(index=False, lineterminator="\n") if len(found) else None


def table(figure: Figure) -> DataFrame:
    """One row for each point, bar or cell that a figure draws: panel, series, drawn_as, x, y.

    ``panel`` is the title of its axes (their number without one), ``series`` its name in the
    legend, ``drawn_as`` line, points, band, bar, outline or cell. A value on an axis with words for
    ticks is that word. The y of a bar that lies on its side is where it stands, and x its length. A
    cell's third number, its value, is in ``value``, a column that there is only with cells.
    """
    points, cells = [], []
    for number, axes in enumerate(figure.axes, start=1):
        panel = axes.get_title() or axes.get_title("left") or str(number)
        points += [(panel, *row) for row in _drawn(axes)]
        cells += [(panel, *row) for row in _cells(axes)]
    found = DataFrame(points, columns=COLUMNS)
    shares = DataFrame(cells, columns=[*COLUMNS, "value"])
    return pd.concat([found, shares]) if cells else found


def _drawn(axes: Axes) -> Iterator[tuple]:
    """Every line, bar, point, band and outline of one panel: series, drawn_as, x, y."""
    x_word, y_word = (_words(axis) for axis in (axes.xaxis, axes.yaxis))

    def rows(artist, kind: str, points) -> Iterator[tuple]:
        for x, y in points:
            yield _name(artist), kind, x_word(x), y_word(y)

    for line in axes.lines:
        yield from rows(line, "line", _places(line, axes))
    for bars in (c for c in axes.containers if isinstance(c, BarContainer)):
        yield from rows(bars, "bar", [_bar(bar, bars.orientation) for bar in bars])
    for shape in (p for p in axes.patches if isinstance(p, Polygon)):
        yield from rows(shape, "outline", shape.get_xy())
    for cloud in axes.collections:
        if isinstance(cloud, PathCollection):
            yield from rows(cloud, "points", np.asarray(cloud.get_offsets()))
        elif isinstance(cloud, PolyCollection):
            yield from rows(cloud, "band", np.concatenate([p.vertices for p in cloud.get_paths()]))


def _places(line: Line2D, axes: Axes) -> np.ndarray:
    """The points of a line; across the whole panel, NaN where it only spans the panel."""
    points = np.column_stack([line.get_xdata(orig=False), line.get_ydata(orig=False)]).astype(float)
    if line.get_transform() == axes.get_yaxis_transform(which="grid"):
        points[:, 0] = np.nan
    if line.get_transform() == axes.get_xaxis_transform(which="grid"):
        points[:, 1] = np.nan
    return points


def _cells(axes: Axes) -> Iterator[tuple]:
    """Every cell of the tables of numbers that a panel shows as colours; of pictures none."""
    x_word, y_word = (_words(axis) for axis in (axes.xaxis, axes.yaxis))
    for image in axes.images:
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2 and isinstance(x_word(0), str) and isinstance(y_word(0), str):
            for (row, column), value in np.ndenumerate(values):
                yield _name(image), "cell", x_word(column), y_word(row), _short(value)


def _bar(bar: Rectangle, orientation: str | None) -> tuple[float, float]:
    """Where a bar stands and where it ends, as (x, y)."""
    if orientation == "horizontal":
        return bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2
    return bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height()


def _name(artist: Artist) -> str:
    """An artist's name in the legend; "" for the names that matplotlib invents."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _short(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{value:.6g}")


def _words(axis: Axis) -> Callable[[float], str | float]:
    """A function from a place on an axis to the word there, or to the place if it has no words.

    Words stand at whole numbers, one after the other; a place belongs to the nearest of them.
    """
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    words = {float(place): label.get_text() for place, label in ticks if label.get_text()}
    places = sorted(words)
    whole = all(place == places[0] + i for i, place in enumerate(places))
    if not (whole and any(re.search(r"[^\W\d_]", word) for word in words.values())):
        return _short
    return lambda place: words.get(float(np.rint(place)), _short(place))
