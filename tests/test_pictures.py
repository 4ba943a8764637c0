"""Pictures: an axis never without its title, colours and shades that can be told apart, texts of others as texts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from elvis import pictures
from elvis.types import Metric

LOG = [{"step": 1, "loss": 2.0, "lr": 0.1, "note": "x"}, {"step": 4, "val_dice": 0.5}, {"step": 9, "loss": 1.0, "lr": None, "flag": True}]
LINES = {"scratch": [(10, Metric(0.2, 0.1, 0.3)), (1, Metric(0.1))], "elvis": [(1, Metric(0.2)), (10, Metric(0.4))]}
COUNTS = {"nodule": {"nodule": 3, "mass": 1}, "mass": {"nothing": 2}}
GAPS = {"+ local": Metric(0.1, 0.05, 0.2), "+ nothing": Metric(0.0, -0.1, 0.1), "- all": Metric(-0.2, -0.3, -0.1), "one seed": Metric(0.05)}
FIGURES = {
    "forest": lambda: pictures.draw_forest({"PG": GAPS, "mIoU": {"+ local": GAPS["+ local"]}}, x="minus global"),
    "curves": lambda: pictures.draw_curves(LOG),
    "efficiency": lambda: pictures.draw_efficiency({"dice": LINES, "iou": LINES}, y="Dice (0 to 1)"),
    "confusion": lambda: pictures.draw_confusion({"all": COUNTS}, ["nodule", "mass"], ["nodule", "mass", "nothing"], x="found", y="asked"),
}


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours in [0, 1], ... 3."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def drawn(figure: Any) -> int:
    file = io.BytesIO()
    figure.savefig(file)
    return len(file.getvalue())


@pytest.mark.parametrize("name", ["curves", "efficiency"])
def test_every_axis_has_a_title(name: str) -> None:
    for axes in FIGURES[name]().axes:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_curves_show_what_is_a_number_over_its_steps() -> None:
    figure = FIGURES["curves"]()
    assert [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes] == [
        ("loss", "loss"), ("lr", "learning rate"), ("val_dice", "Dice on val (0 to 1)"),
    ]  # fmt: skip
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 2], [9, 1]]


def test_a_forest_fills_what_leaves_zero_out_in_the_colour_of_its_sign() -> None:
    figure = FIGURES["forest"]()
    first, second = figure.axes
    assert [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes] == [("PG", "minus global"), ("mIoU", "minus global")]
    assert [label.get_text() for label in first.get_yticklabels()] == ["one seed", "- all", "+ nothing", "+ local"]  # read from above
    marks = {line.get_ydata()[0]: line for line in first.lines if line.get_marker() == "o"}
    better, worse = pictures.PALETTE[:2]
    assert [marks[n].get_color() for n in range(4)] == [better, worse, pictures.QUIET, better]
    assert [marks[n].get_markerfacecolor() for n in range(4)] == [better, worse, "white", better]
    assert marks[1].get_xdata().tolist() == [-0.2]
    ends = {bar.get_segments()[0][0][1]: [float(x) for x, _ in bar.get_segments()[0]] for bar in first.collections}
    assert ends == {3.0: pytest.approx([0.05, 0.2]), 2.0: pytest.approx([-0.1, 0.1]), 1.0: pytest.approx([-0.3, -0.1]), 0.0: [0.05, 0.05]}
    assert len([line for line in second.lines if line.get_marker() == "o"]) == 1


def test_a_line_of_a_forest_is_named_in_full_and_fits_into_the_figure() -> None:
    name = "+ phrase_image + intra_modal (kl, teacher's temperature .03)"
    figure = pictures.draw_forest({"PG": {name: Metric(0.1, 0.0, 0.2), "short": Metric(0.1)}}, x="minus global")
    figure.draw_without_rendering()
    label = figure.axes[0].get_yticklabels()[1]
    assert label.get_text() == name
    assert label.get_window_extent().x0 >= 0
    assert pictures.draw_forest({"PG": {"x" * 200: Metric(0.1)}}, x="").axes[0].get_yticklabels()[0].get_text() == "x" * 71 + "…"


def test_a_confusion_says_the_count_and_colours_the_share_of_its_row() -> None:
    figure = FIGURES["confusion"]()
    axes, bar = figure.axes
    assert (figure.get_supxlabel(), figure.get_supylabel(), bar.get_ylabel()) == ("found", "asked", "share of the row (0 to 1)")
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "3", (1, 0): "1", (2, 1): "2"}
    assert np.nan_to_num(axes.images[0].get_array().filled(0)).tolist() == [[0.75, 0.25, 0], [0, 0, 1]]


def test_the_shades_of_shares_fall_evenly_and_the_palette_can_be_told_apart_without_colour_too() -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    steps = -np.diff(lightness(LinearSegmentedColormap.from_list("shares", pictures.SHARES)(np.linspace(0, 1, 21))[:, :3]))
    assert 3.5 < steps.min() < steps.max() < 4.5
    assert len(set(pictures.MARKERS)) > len(set(pictures.PALETTE)) == 6
    assert all(lightness(np.array(to_rgb(colour))) < 75 for colour in pictures.PALETTE)  # on white


@pytest.mark.slow
@pytest.mark.parametrize("text", ["$\\frac{", "a $ b $ c", "\x1b[31m\n\x00", "x" * 400, "é ñ"])
def test_a_text_of_others_is_drawn_as_a_text(text: str) -> None:
    figure = pictures.draw_confusion({text: {text: {text: 1}}}, [text], [text], x="found", y="asked")
    assert drawn(figure) > 1000
    assert drawn(pictures.draw_efficiency({text: {text: LINES["elvis"]}}, y="Dice")) > 1000
    assert figure.axes[0].get_title().replace("\\$", "$") == (text if text.isprintable() and len(text) <= 40 else figure.axes[0].get_title())
    assert len(figure.axes[0].get_title()) < 50


def test_a_map_has_its_boxes_and_its_maximum() -> None:
    heat = np.zeros((56, 56))
    heat[40, 10] = 1
    panel = pictures.draw_map(np.full((56, 56), 77, np.uint8), heat, [(20, 10, 40, 30)])
    assert panel.shape == (224, 224, 3)
    assert (panel[4 * 10, 4 * 20 : 4 * 40] == pictures.TRUTH).all()
    assert (panel[162, 38:46] == pictures.MARK).all()
