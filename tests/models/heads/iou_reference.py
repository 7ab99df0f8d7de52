"""pairing='iou' naively: one source after the other, one replica after the other."""

import torch

from tests import reference
from tests import reference_losses as twin
from tests.models.heads.head_data import SHAPE

OPTIONS = dict(
    pairing='iou', iou_threshold=0.3, score_threshold=0.45, max_candidates=7, strength='plain'
)


def candidates(scores, options=OPTIONS):
    """Rows of the most confident predictions of one image, best first."""
    order = sorted(range(len(scores)), key=lambda row: -float(scores[row]))
    kept = order[: options['max_candidates']]
    return [row for row in kept if scores[row] >= options['score_threshold']]


def naive_groups(images, threshold):
    """Group numbers of the boxes of all images.

    Args:
        images: For each (source, boxes as lists in source pixels, labels).
    """
    groups, means, number = [[] for _ in images], {}, 0
    for image, (source, boxes, labels) in enumerate(images):
        known = [name for name in means if name[0] == source]
        averages = [
            [sum(column) / len(column) for column in zip(*means[name][1])] for name in known
        ]
        pairs = dict(
            twin.greedy_pairs(
                boxes, averages, labels, [means[name][0] for name in known], threshold
            )
        )
        for row, (box, label) in enumerate(zip(boxes, labels)):
            if row in pairs:
                name = known[pairs[row]]
            else:
                name, number = (source, number), number + 1
                means[name] = (label, [])
            means[name][1].append(box)
            groups[image].append(name[1])
    return [group for own in groups for group in own]


def whole_sides(box, back):
    """Which sides of a restored box do not reach a border of the replica inside the source."""
    height, width = SHAPE
    left, top, right, bottom = reference.move_box((0, 0, width, height), back)
    dx, dy = 0.05 * (box[2] - box[0]), 0.05 * (box[3] - box[1])
    return [
        not (box[0] <= left + dx and left > 1),
        not (box[1] <= top + dy and top > 1),
        not (box[2] >= right - dx and right < width - 1),
        not (box[3] >= bottom - dy and bottom < height - 1),
    ]


def naive_terms(head, logits, decode, samples, sigmoid, avg_factor, options=OPTIONS, factors=None):
    """Both terms, from the logits (B lists of (n, C)) of all predictions.

    Args:
        decode: Function of image, row and label: the box in the replica.
        factors: For each image what the scores of its predictions are multiplied by.
    """
    images, rows_of, boxes, chosen, whole = [], [], [], [], []
    for image, (own, sample) in enumerate(zip(logits, samples)):
        probabilities = own.sigmoid() if sigmoid else own.softmax(dim=1)
        scores, labels = probabilities[:, : head.num_classes].max(dim=1)
        scores = scores.tolist()
        if factors is not None:
            scores = [score * factor for score, factor in zip(scores, factors[image])]
        rows = candidates(scores, options)
        back = reference.inverse(sample.source_matrix)
        restored = []
        for row in rows:
            x1, y1, x2, y2 = decode(image, row, int(labels[row]))
            corners = torch.stack(
                [torch.stack([x, y, x * 0 + 1]) for x in (x1, x2) for y in (y1, y2)]
            )
            moved = corners.double() @ torch.tensor(back).T
            moved = moved[:, :2] / moved[:, 2:]
            restored.append(torch.cat([moved.amin(dim=0), moved.amax(dim=0)]))
        images.append((sample.source_id, [box.tolist() for box in restored], labels[rows].tolist()))
        rows_of.append(rows)
        boxes += restored
        whole += [whole_sides(box.tolist(), back) for box in restored]
        chosen += [own[row] for row in rows]
    groups = naive_groups(images, options['iou_threshold'])
    kind = twin.bernoulli if sigmoid else twin.categorical
    return (
        kind(torch.stack(chosen), groups, avg_factor=avg_factor),
        twin.box(torch.stack(boxes), groups, whole, avg_factor=avg_factor),
        groups,
    )
