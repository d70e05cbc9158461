"""What is drawn over an X-ray, checked pixel by pixel."""
import numpy as np
import pytest
from PIL import Image

from causalclipseg import plots

IMAGE = np.full((90, 120), 100, np.uint8)
MASK = np.zeros((90, 120), bool)
MASK[30:60, 40:90] = True
INSIDE, OUTSIDE = (45, 65), (10, 10)


def test_the_tint_lies_inside_and_the_outline_on_the_border():
    drawn = np.asarray(plots.overlay(IMAGE, MASK, opacity=0.5))
    assert drawn.shape == (90, 120, 3)
    assert np.abs(drawn[INSIDE] - (0.5 * 100 + 0.5 * np.array(plots.SKY))).max() <= 1
    assert drawn[OUTSIDE].tolist() == [100, 100, 100]
    changed = (drawn != 100).any(axis=2)
    assert changed[MASK].all() and not changed[:26].any() and not changed[:, 94:].any()
    border = drawn[30, 50:80].astype(int)  # the first row inside
    assert np.abs(border - plots.SKY).max() < np.abs(drawn[INSIDE].astype(int) - plots.SKY).max()


def test_opacity_probability_and_colour():
    assert np.array_equal(plots.overlay(IMAGE, MASK, opacity=0, contour=False), np.dstack([IMAGE] * 3))
    solid = np.asarray(plots.overlay(IMAGE, MASK, opacity=1, colour=plots.GREEN, contour=False))
    assert (solid[MASK] == plots.GREEN).all() and (solid[~MASK] == 100).all()
    probability = np.where(MASK, np.linspace(0.5, 1, 120)[None], 0.1)
    sure = np.asarray(plots.overlay(IMAGE, MASK, probability, opacity=1, contour=False)).astype(int)
    assert (np.diff(sure[45, 40:90, 2]) >= 0).all() and sure[45, 89, 2] > sure[45, 40, 2] > 100
    assert np.array_equal(plots.overlay(IMAGE, MASK & False), np.dstack([IMAGE] * 3))


def test_heat_is_proportional_to_the_value():
    values = np.linspace(0, 1, 120, dtype=np.float32)[None].repeat(90, 0)
    drawn = np.asarray(plots.heat(values, IMAGE, plots.ORANGE, opacity=1)).astype(float)
    expected = 100 * (1 - values[..., None]) + values[..., None] * np.array(plots.ORANGE)
    assert np.abs(drawn - expected).max() <= 1.5
    assert np.asarray(plots.heat(np.zeros((9, 7)))).shape == (9, 7, 3) and not np.asarray(plots.heat(np.zeros((9, 7)))).any()


def test_pictures_of_other_kinds_and_wrong_shapes():
    colour = Image.fromarray(np.dstack([IMAGE, IMAGE, IMAGE]))
    assert np.array_equal(plots.overlay(colour, MASK), plots.overlay(IMAGE, MASK))
    for call, said in (
        (lambda: plots.overlay(IMAGE[:50], MASK), "picture has 120×50 pixels, what lies over it 120×90"),
        (lambda: plots.overlay(IMAGE, MASK, probability=np.zeros((3, 3))), r"shape \(3, 3\), the mask \(90, 120\)"),
        (lambda: plots.overlay(IMAGE, MASK, opacity=1.5), "between 0 and 1, not 1.5"), (lambda: plots.heat(np.zeros((2, 3, 4)), IMAGE), r"not \(2, 3, 4\)"),
        (lambda: plots.heat(np.zeros((2, 3)), IMAGE), "what lies over it 3×2"), (lambda: plots.heat(np.zeros((90, 120)), IMAGE, opacity=-1), "not -1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
