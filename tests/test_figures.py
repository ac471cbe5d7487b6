"""Figures are pictures in a notebook, without pyplot."""

import pickle
import subprocess
import sys

import pytest

from ftcore.figures import new_figure

pytest.importorskip("matplotlib", reason="matplotlib is not installed; it comes with the extra plot")

PNG = b"\x89PNG"


def displayed(value: object) -> dict[str, object]:
    """What a notebook shows of the last line of a cell, by MIME type."""
    formatters = pytest.importorskip(
        "IPython.core.formatters", reason="IPython is not installed; it comes with the extra test"
    )
    data, _ = formatters.DisplayFormatter().format(value)
    return data


def test_a_figure_is_a_picture_in_a_notebook():
    figure = new_figure(4, 2)
    figure.subplots().plot([1, 2])
    assert displayed(figure)["image/png"].startswith(PNG)


def test_a_figure_is_a_picture_after_it_was_pickled():
    figure = pickle.loads(pickle.dumps(new_figure(4, 2)))
    figure.subplots().plot([1, 2])
    assert figure._repr_png_().startswith(PNG)


def test_drawing_and_saving_leave_pyplot_alone(tmp_path):
    code = (
        "import sys, torch\n"
        "from ftcore.analysis import draw_heads, save_figure\n"
        "figure = draw_heads({'decoder': torch.rand(2, 2)})\n"
        "save_figure(figure, sys.argv[1])\n"
        "figure._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    path = tmp_path / "new" / "figure.png"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.read_bytes().startswith(PNG)
