from __future__ import annotations

import numpy as np
import pytest

from flows.reports.learning_curves import area_under_curve, mean_curve


def test_area_under_a_curve_by_hand():
    episodes, won = np.array([0.0, 100, 300]), np.array([0.2, 0.4, 0.4])
    # Trapezoids: 100 * (0.2 + 0.4) / 2 + 200 * (0.4 + 0.4) / 2 = 110, over 300 episodes.
    assert area_under_curve(episodes, won, 300) == pytest.approx(110 / 300)
    # Success is 0.3 after 50 episodes: (0.2 + 0.3) / 2. After 200: 30 and 100 * 0.4, over 200.
    assert area_under_curve(episodes, won, 50) == pytest.approx(0.25)
    assert area_under_curve(episodes, won, 200) == pytest.approx(70 / 200)
    assert area_under_curve(np.array([0.0]), np.array([0.3]), 0) == 0.3


def test_the_mean_of_curves_is_taken_at_the_same_number_of_episodes():
    one = np.array([0.0, 10, 20]), np.array([0.0, 0.5, 1.0])
    other = np.array([0.0, 5, 40]), np.array([0.0, 0.5, 0.5])
    at, mean = mean_curve([one, other])
    assert at.tolist() == [0.0, 5.0, 10.0, 20.0]  # 40 is beyond the first
    # At 5: (0.25 + 0.5) / 2, at 10: (0.5 + 0.5) / 2, at 20: (1 + 0.5) / 2
    assert mean.tolist() == [0.0, 0.375, 0.5, 0.75]
