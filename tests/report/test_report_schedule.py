"""The planned learning rate and momentum."""

import numpy as np
import pytest

from report.schedule import draw_schedule

SCHEDULE = {"epoch": [0.0, 0.5, 1.0], "lr": [0.0, 0.1, 1e-9]}


def test_the_learning_rate_is_drawn_over_the_epochs():
    (axes,) = draw_schedule(SCHEDULE).axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0], [0.5, 0.1], [1, 1e-9]])
    assert axes.get_title() == "planned learning rate"


def test_momentum_has_axes_of_its_own():
    lr, momentum = draw_schedule(SCHEDULE | {"momentum": [0.95, 0.85, 0.95]}).axes
    assert momentum.get_lines()[0].get_ydata() == pytest.approx([0.95, 0.85, 0.95])
    assert (lr.get_title(), momentum.get_title()) == ("planned learning rate", "planned momentum")
