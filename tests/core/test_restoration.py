"""How far restored boxes lie from annotations."""

import numpy as np
import torch

from lt_mm.core.geometry import moved_outlines, restoration_errors
from tests import reference

FLIP = np.array([[-2.0, 0.0, 160.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
TURN = np.array([[0.8, -0.6, 30.0], [0.6, 0.8, 5.0], [0.0, 0.0, 1.0]])
BOX = [10.0, 20.0, 50.0, 40.0]


def errors(box, matrix, annotation=BOX, visibility=1.0):
    found = restoration_errors(
        torch.tensor(np.array([box]), dtype=torch.float32),
        torch.tensor(matrix)[None],
        torch.tensor([annotation]),
        torch.tensor([visibility]),
    )
    assert found.shape == (1,) and found.dtype == torch.float64
    return float(found)


def test_a_whole_box_has_to_come_back():
    moved = reference.move_box(BOX, FLIP)
    assert errors(moved, FLIP) < 1e-5
    # Two pixels of the replica are one of the source.
    assert abs(errors(moved + np.array([0, 0, -2, 0]), FLIP) - 1) < 1e-5
    assert abs(errors(moved, FLIP, [10.0, 20.0, 50.0, 43.0]) - 3) < 1e-5


def test_a_cut_box_may_come_back_to_a_part_but_not_beyond():
    left, top, right, bottom = reference.move_box(BOX, FLIP)
    assert errors([left + 30, top, right, bottom - 10], FLIP, visibility=0.5) == 0
    assert abs(errors([left - 4, top, right - 30, bottom], FLIP, visibility=0.5) - 2) < 1e-5


def test_a_turned_box_comes_back_too_large():
    moved = reference.move_box(BOX, TURN)
    naive = reference.move_box(moved, reference.inverse(TURN))
    expected = np.abs(naive - np.array(BOX)).max()
    assert expected > 5
    assert abs(errors(moved, TURN) - expected) < 1e-4
    assert abs(errors(moved, TURN, visibility=0.4) - expected) < 1e-4


def test_no_boxes():
    empty = torch.zeros(0, 4)
    assert restoration_errors(empty, torch.zeros(0, 3, 3), empty, torch.zeros(0)).shape == (0,)


def test_outlines_are_the_corners_in_turn():
    outline = moved_outlines(torch.tensor([BOX]), torch.tensor(TURN)[None])[0].numpy()
    corners = [(10, 20), (50, 20), (50, 40), (10, 40)]
    np.testing.assert_allclose(outline, reference.move_points(corners, TURN), rtol=1e-5)
