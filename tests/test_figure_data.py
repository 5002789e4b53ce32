"""The numbers behind figures: what is drawn is what is written, checked by hand."""

import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from dalle3lib import execution, figure_data, plots


def rows(figure) -> list[tuple]:
    return list(figure_data.table(figure).itertuples(index=False, name=None))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_lines_points_and_bars_are_written_as_drawn():
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2], [0.5, 1 / 3], label="loss")
    left.scatter([3], [4], label="best")
    left.set_title("training")
    right.bar(["a", "b"], [5, 6])
    assert rows(figure) == [
        ("training", "loss", "line", 1, 0.5),
        ("training", "loss", "line", 2, 0.333333),
        ("training", "best", "points", 3, 4),
        ("2", "", "bar", "a", 5),
        ("2", "", "bar", "b", 6),
    ]


def test_grouped_bars_lying_on_their_side_belong_to_their_words():
    figure = plots.shares(pd.DataFrame({"SSC": [0.1, 0.2], "DSC": [0.3, 0.4]}, ["u", "v"]), "share")
    drawn = [row[1:] for row in rows(figure)]
    assert drawn == [
        *[("SSC", "bar", 10, "u"), ("SSC", "bar", 20, "v")],
        *[("DSC", "bar", 30, "u"), ("DSC", "bar", 40, "v")],
    ]


def test_a_line_across_the_panel_has_one_coordinate():
    figure, axis = plt.subplots()
    axis.axvline(0.25, label="zero")
    ((_, name, kind, x, y), _) = rows(figure)
    assert (name, kind, x) == ("zero", "line", 0.25) and np.isnan(y)


def test_a_table_of_colours_gives_its_values():
    figure = plots.heatmaps({"facts": pd.DataFrame({"a": [0.25], "b": [np.nan]}, ["u"])})
    found = pd.read_csv(io.StringIO(figure_data.csv(figure)))
    assert list(zip(found.x, found.y, found.value.fillna(-1), strict=True)) == [
        ("a", "u", 0.25),
        ("b", "u", -1),
    ]


def test_pictures_have_no_numbers():
    pictures = {"made": np.zeros((2, 8, 8, 3), np.uint8)}
    assert figure_data.csv(plots.sample_grid(pictures, ["a", "b"])) is None


def test_a_kernel_shows_figures_with_their_numbers_and_other_things_without():
    shell = InteractiveShell()
    figure_data.load_ipython_extension(shell)
    figure, axis = plt.subplots()
    axis.plot([1, 2], [3, 4])
    plt.switch_backend(plt.get_backend())  # pyplot takes away printers of figures; ours stays
    shown, _ = shell.display_formatter.format(figure)
    assert shown["text/csv"] == "panel,series,drawn_as,x,y\n1,,line,1.0,3.0\n1,,line,2.0,4.0\n"
    assert "text/csv" not in shell.display_formatter.format(pd.DataFrame({"a": [1]}))[0]


def test_the_command_line_runs_notebooks_with_it(tiny):
    tiny(
        "01_tiny",
        "",
        "from dalle3lib import config, runs\ncfg = config.resolve('01_tiny', globals())\n"
        "run = runs.open_run(cfg)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4])\nplt.show()",
        "run.finish({})",
    )
    out = execution.run_notebook("01_tiny", {})
    outputs = nbformat.read(out, 4).cells[3].outputs
    assert ["1,,line,1.0,3.0" in o.data.get("text/csv", "") for o in outputs] == [True]
