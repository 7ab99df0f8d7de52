"""Naive twins of the functions of ``lt_mm.core``: float64 numpy and Python loops.

They are written from the definitions, share no code with the package, and handle
one item at a time.
"""

import math

import numpy as np

# ---------------------------------------------------------------------------
# Geometry: points and boxes moved by 3x3 matrices, edge coordinates
# ---------------------------------------------------------------------------


def move_point(x, y, matrix):
    """One point moved by one matrix: (x, y)."""
    rows = [float(row[0]) * x + float(row[1]) * y + float(row[2]) for row in matrix]
    return rows[0] / rows[2], rows[1] / rows[2]


def move_points(points, matrix):
    """Points (k, 2) moved one after the other: (k, 2) float64."""
    moved = [move_point(float(x), float(y), matrix) for x, y in points]
    return np.array(moved, dtype=np.float64).reshape(-1, 2)


def move_box(box, matrix):
    """The axis-aligned hull of the four moved corners of one box: (4,) float64."""
    x1, y1, x2, y2 = map(float, box)
    corners = move_points([(x, y) for y in (y1, y2) for x in (x1, x2)], matrix)
    xs, ys = corners[:, 0], corners[:, 1]
    return np.array([min(xs), min(ys), max(xs), max(ys)])


def move_boxes(boxes, matrices):
    """Boxes (n, 4), each moved by its own matrix (n, 3, 3): (n, 4) float64."""
    moved = [move_box(box, matrix) for box, matrix in zip(boxes, matrices)]
    return np.array(moved, dtype=np.float64).reshape(-1, 4)


def inverse(matrix):
    """The inverse by Cramer's rule; None where the determinant is zero."""
    a, b, c, d, e, f, g, h, i = (float(value) for row in matrix for value in row)
    det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if det == 0:
        return None
    return (
        np.array(
            [
                [e * i - f * h, c * h - b * i, b * f - c * e],
                [f * g - d * i, a * i - c * g, c * d - a * f],
                [d * h - e * g, b * g - a * h, a * e - b * d],
            ]
        )
        / det
    )


def flip_point(x, y, shape, direction):
    """A point of an image (height, width) after a flip."""
    height, width = shape
    if direction in ('horizontal', 'diagonal'):
        x = width - x
    if direction in ('vertical', 'diagonal'):
        y = height - y
    return x, y


def rotate_point(x, y, center, degrees):
    """A point turned clockwise on the screen, in polar coordinates."""
    dx, dy = x - center[0], y - center[1]
    radius, angle = math.hypot(dx, dy), math.atan2(dy, dx) + math.radians(degrees)
    return center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)


def scale_about_point(x, y, center, sx, sy):
    """A point after a resize that leaves ``center`` where it is."""
    return center[0] + (x - center[0]) * sx, center[1] + (y - center[1]) * sy


def clip_box(box, shape):
    """A box cut at the edges of an image (height, width)."""
    height, width = shape
    x1, y1, x2, y2 = map(float, box)
    return np.array(
        [
            min(max(x1, 0), width),
            min(max(y1, 0), height),
            min(max(x2, 0), width),
            min(max(y2, 0), height),
        ]
    )


def box_area(box):
    """Area of a box; 0 where its sides are crossed."""
    x1, y1, x2, y2 = map(float, box)
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def visible_fraction(box, whole, shape):
    """Area of ``box`` inside an image and the whole box / area of the whole box."""
    area = box_area(whole)
    if area == 0:
        return 0.0
    x1, y1, x2, y2 = clip_box(box, shape)
    seen = [max(x1, whole[0]), max(y1, whole[1]), min(x2, whole[2]), min(y2, whole[3])]
    return min(box_area(seen) / area, 1.0)


def keeps_boxes_straight(matrix, size=1000.0):
    """Whether a box's moved edges stay horizontal or vertical, tried out.

    Moves a square of ``size`` pixels and looks at its four edges.
    """
    corners = move_points([(0, 0), (size, 0), (size, size), (0, size)], matrix)
    extent = np.ptp(corners, axis=0)
    for start, end in zip(corners, np.roll(corners, -1, axis=0)):
        step = np.abs(end - start)
        if min(step[0] - 1e-4 * extent[0], step[1] - 1e-4 * extent[1]) > 0:
            return False
    return True


# ---------------------------------------------------------------------------
# Geometry: masks and the sides of boxes
# ---------------------------------------------------------------------------


def read_bilinear(grid, x, y):
    """A grid (h, w) of numbers at the centres of unit cells, read at the point (x, y).

    Between the centres bilinear, beyond the outermost ones like the nearest of them.
    """
    height, width = grid.shape
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    total = 0.0
    for row in range(height):
        for column in range(width):
            weight = max(1 - abs(x - column), 0) * max(1 - abs(y - row), 0)
            total += weight * float(grid[row, column])
    return total


def cell_centers(box, height, width):
    """(x, y) of the centres of height x width equal cells of a box: (h, w, 2)."""
    x1, y1, x2, y2 = map(float, box)
    return np.array(
        [
            [
                (x1 + (column + 0.5) / width * (x2 - x1), y1 + (row + 0.5) / height * (y2 - y1))
                for column in range(width)
            ]
            for row in range(height)
        ]
    )


def mask_to_source(mask, roi, matrix, region, size):
    """One mask (h, w) over a RoI, read at the cells of a grid over a source region.

    Returns (size, size) values, and by how many pixels each cell lies inside the RoI,
    negative outside. The RoI must have an area.
    """
    height, width = mask.shape
    x1, y1, x2, y2 = map(float, roi)
    values, depths = np.zeros((size, size)), np.zeros((size, size))
    centers = cell_centers(region, size, size)
    for row in range(size):
        for column in range(size):
            x, y = move_point(*centers[row, column], matrix)
            depths[row, column] = min(x - x1, x2 - x, y - y1, y2 - y)
            values[row, column] = read_bilinear(
                mask, (x - x1) / (x2 - x1) * width, (y - y1) / (y2 - y1) * height
            )
    return values, depths


def side_positions(center, distances, matrix):
    """One point and its distances to the sides of a box, seen in the source image.

    Returns (4, K): x of the left, y of the top, x of the right and y of the bottom side
    at each distance; and which side of the replica each of the four is.
    """
    back, found = inverse(matrix), {}
    for side, (dx, dy) in enumerate([(-1, 0), (0, -1), (1, 0), (0, 1)]):
        ray = move_points([(center[0] + d * dx, center[1] + d * dy) for d in distances], back)
        forward = ray[-1] - ray[0]
        axis = int(abs(forward[1]) > abs(forward[0]))
        found[axis if forward[axis] < 0 else axis + 2] = ray[:, axis], side
    return (np.array([found[side][0] for side in range(4)]), [found[side][1] for side in range(4)])


def sides_in_source(values, matrix):
    """What belongs to the sides of a replica, for the left, top, right and bottom of the source."""
    _, sides = side_positions((0.0, 0.0), [0.0, 1.0], matrix)
    return [values[side] for side in sides]


# ---------------------------------------------------------------------------
# Agreement of the predictions of a group
# ---------------------------------------------------------------------------


def groups_of(group_ids):
    """Rows of each group with two members or more, by ascending id; no negative ids."""
    members = {}
    for row, group in enumerate(map(int, group_ids)):
        members.setdefault(group, []).append(row)
    return {
        group: members[group] for group in sorted(members) if group >= 0 and len(members[group]) > 1
    }


def categorical_kl(mean, own):
    """D_KL(mean || own) of two distributions over the same outcomes."""
    return sum(m * math.log(m / p) for m, p in zip(mean, own) if m > 0)


def mean_kl(rows):
    """The mean of D_KL(pbar || p_i) of the predictions (m, C) of one group."""
    mean = [math.fsum(column) / len(rows) for column in zip(*rows)]
    return sum(categorical_kl(mean, row) for row in rows) / len(rows)


def mean_bernoulli_kl(rows):
    """The same of C choices between yes and no each."""
    return sum(mean_kl([(p, 1 - p) for p in column]) for column in zip(*rows))


def agreeing_pairs(labels):
    """Share of the pairs of a list's entries that are equal."""
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    return sum(a == b for a, b in pairs) / len(pairs)


def most_common(labels):
    """The label that occurs most often, the smallest of those."""
    return min(labels, key=lambda label: (-labels.count(label), label))
