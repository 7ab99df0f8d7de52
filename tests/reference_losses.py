"""Naive twins of the pairing and of the consistency term, one prediction at a time.

Written from the definitions::

    term   = 1/n * sum_i D_KL( pbar_i || p_i )
    pbar_i = sum_j 1(i, j) p_j / sum_j 1(i, j)

in float64 and Python loops, sharing no code with the package. The terms are torch
scalars, so that autograd gives the reference of the gradient too.
"""

import torch
from torch.distributions import Normal, kl_divergence

MIN_BOX_SIDE = 0.01  # pixels; below it, a side counts as this long
LOWEST_LOG = -100  # a log-probability below it counts as this; the gradient stays
BIN_FLOOR = 0.001  # share of a side's distribution that is the same in all bins

# ---------------------------------------------------------------------------
# The consistency term
# ---------------------------------------------------------------------------


def positives(group_ids, i):
    """All j, i among them, with 1(i, j) = 1; none where i has no other positive."""
    ids = [int(value) for value in group_ids]
    alike = [j for j, value in enumerate(ids) if value == ids[i]]
    return alike if ids[i] >= 0 and len(alike) > 1 else []


def consistency(predictions, group_ids, divergence, detach_mean=False, avg_factor=None):
    """The term; ``divergence(mean, row)`` is one D_KL(pbar_i || p_i)."""
    total = 0 * predictions.sum()  # so that there is a graph without a pair too
    rows = predictions.unbind()
    for i, row in enumerate(rows):
        alike = [rows[j] for j in positives(group_ids, i)]
        if alike:
            mean = sum(alike) / len(alike)
            mean = mean.detach() if detach_mean else mean
            total = total + divergence(mean, row)
    return total / (avg_factor or max(len(predictions), 1))


def discrete(log_p, group_ids, **options):
    """``log_p`` (N, K), of K outcomes: the sum of m log(m / p) over those with m > 0.

    The probabilities are averaged, and the logarithms travel beside them: where p
    underflows, log p does not.
    """
    size = log_p.shape[1]

    def divergence(mean, row):
        mean, own = mean[:size], floored(row[size:])
        present = mean > 0
        return (mean[present] * (mean[present].log() - own[present])).sum()

    return consistency(torch.cat([log_p.exp(), log_p], dim=1), group_ids, divergence, **options)


def floored(log_p):
    return log_p + (log_p.clamp(min=LOWEST_LOG) - log_p).detach()


def categorical(logits, group_ids, temperature=1.0, **options):
    """``logits`` (N, C): one choice among C classes."""
    log_p = torch.log_softmax(logits.double() / temperature, dim=1)
    return discrete(log_p, group_ids, **options)


def bernoulli(logits, group_ids, temperature=1.0, **options):
    """``logits`` (N, C): C choices between yes and no, the logit of no being 0."""
    yes = logits.double() / temperature
    choices = torch.stack([yes, torch.zeros_like(yes)], dim=2)
    log_p = torch.log_softmax(choices, dim=2).flatten(1)
    return discrete(log_p, group_ids, **options)


def box(boxes_xyxy, group_ids, whole_sides=None, detach_mean=False, avg_factor=None, damp=True):
    """``boxes_xyxy`` (N, 4): log(1 + KL) of two normal distributions, for x and for y.

    An axis of a box counts where both of its sides are whole, if another one's are too.
    """
    total = 0 * boxes_xyxy.double().sum()
    for axis in range(2):
        sides = boxes_xyxy.double()[:, [axis, axis + 2]]
        for i in range(len(sides)):
            alike = whole_positives(group_ids, i, whole_sides, [axis, axis + 2])
            if alike:
                mean = sum(sides[j] for j in alike) / len(alike)
                mean = mean.detach() if detach_mean else mean
                kl = kl_divergence(gaussian(*mean), gaussian(*sides[i]))
                total = total + (kl.log1p() if damp else kl)
    return total / (avg_factor or max(len(boxes_xyxy), 1))


def gaussian(low, high):
    """The normal distribution of a box along one axis."""
    return Normal((low + high) / 2, (high - low).clamp(min=MIN_BOX_SIDE) / 2)


def whole_positives(group_ids, i, whole_sides, sides):
    """The positives of i in which all of some sides are whole; none unless i is one of two."""
    alike = positives(group_ids, i)
    if whole_sides is not None:
        alike = [j for j in alike if all(whole_sides[j][side] for side in sides)]
    return alike if i in alike and len(alike) > 1 else []


def masks(mask_logits, inside, group_ids, temperature=1.0, detach_mean=False, avg_factor=None):
    """``mask_logits``, ``inside`` (N, H, W): the mean over the pixels that a mask shares.

    Pixel after pixel, of the masks of the group that are there.
    """
    logits = mask_logits.double() / temperature
    total = 0 * logits.sum()
    for i in range(len(logits)):
        alike, divergences = positives(group_ids, i), []
        for row in range(logits.shape[1]):
            for column in range(logits.shape[2]):
                there = [j for j in alike if inside[j, row, column]]
                if i in there and len(there) > 1:
                    pixel = logits[there, row, column]
                    divergences.append(pixel_divergence(pixel, there.index(i), detach_mean))
        if divergences:
            total = total + sum(divergences) / len(divergences)
    return total / (avg_factor or max(len(logits), 1))


def pixel_divergence(logits, own, detach_mean):
    """Bernoulli D_KL(mean || own) of one pixel's ``logits`` (n,)."""
    total = 0
    for signed in (logits, -logits):
        mean = signed.sigmoid().mean()
        mean = mean.detach() if detach_mean else mean
        if mean > 0:
            log_p = floored(torch.nn.functional.logsigmoid(signed[own]))
            total = total + mean * (mean.log() - log_p)
    return total


def sides(
    side_logits,
    positions,
    group_ids,
    whole_sides=None,
    detach_mean=False,
    avg_factor=None,
    replicas=None,
):
    """``side_logits``, ``positions`` (N, 4, K): log(1 + KL) in the group's bins, summed.

    With ``replicas``, between the means of the replicas.
    """
    p = side_logits.double().softmax(dim=2)
    total = 0 * p.sum()
    for i in range(len(p)):
        for side in range(4):
            alike = whole_positives(group_ids, i, whole_sides, [side])
            if not alike:
                continue
            spread = in_bins(
                [p[j, side] for j in alike], [positions[j, side].tolist() for j in alike]
            )
            if replicas is not None:
                own = [replicas[j] for j in alike]
                if alike.index(i) != own.index(replicas[i]):
                    continue  # the first stands for all of its replica
                spread = averaged(torch.stack(spread), [0] * len(own), own).unbind()
                means = [spread[own.index(replica)] for replica in sorted(set(own))]
            else:
                means = spread
            mean = sum(means) / len(means)
            mean = mean.detach() if detach_mean else mean
            total = total + (mean * (mean / spread[alike.index(i)]).log()).sum().log1p()
    return total / (avg_factor or max(len(p), 1))


def in_bins(probabilities, positions):
    """The distributions of one side of one group, over bins that they share.

    A position counts for a bin by its hat function: 1 at its middle, 0 at the next.
    """
    count = len(positions[0])
    expected = [
        sum(p * x for p, x in zip(own.tolist(), places))
        for own, places in zip(probabilities, positions)
    ]
    middle = sum(expected) / len(expected)
    width = max(
        MIN_BOX_SIDE, *(abs(places[-1] - places[0]) / max(count - 1, 1) for places in positions)
    )
    bins = [middle + (number - count) * width for number in range(2 * count + 1)]
    spread = []
    for own, places in zip(probabilities, positions):
        near = [min(max(x, bins[0]), bins[-1]) for x in places]
        hats = [[max(1 - abs(x - b) / width, 0) for b in bins] for x in near]
        shares = own @ torch.tensor(hats, dtype=torch.float64)
        spread.append((1 - BIN_FLOOR) * shares + BIN_FLOOR / len(bins))
    return spread


# ---------------------------------------------------------------------------
# Pairing
# ---------------------------------------------------------------------------


def same_partition(ids):
    """Ids as the row of the first one alike; negative ids all become -1."""
    ids = [int(value) for value in ids]
    return [ids.index(value) if value >= 0 else -1 for value in ids]


def across_replicas(instances, replicas, keep):
    """`gt` pairing: ids 0, 1... in order of appearance, -1 for those without a pair."""
    members = {}
    for i, instance in enumerate(instances):
        if keep[i]:
            members.setdefault(tuple(instance), []).append(i)
    ids = [-1] * len(instances)
    for number, rows in enumerate(members.values()):
        if len({replicas[i] for i in rows}) > 1:
            for i in rows:
                ids[i] = number
    return ids


def resort(group_ids, replicas, distances):
    """Resort(p | y): the first of the nearest predictions of each group and replica."""
    nearest = {}
    for i, cell in enumerate(zip(group_ids, replicas)):
        if cell not in nearest or distances[i] < distances[nearest[cell]]:
            nearest[cell] = i
    kept = set(nearest.values())
    return [group if i in kept else -1 for i, group in enumerate(group_ids)]


def distance(box, annotation, given=False):
    """1 - IoU; of boxes apart 1 + g / (1 + g), with g the distance of the sides over the size.

    Given ones come after all others.
    """
    if given:
        return 3 + distance(box, annotation)
    box, annotation = box.tolist(), annotation.tolist()
    overlap = iou(box, annotation)
    if overlap > 0:
        return 1 - overlap
    x1, y1, x2, y2 = annotation
    gap = sum(abs(a - b) for a, b in zip(box, annotation)) / max(x2 - x1 + y2 - y1, 1)
    return 1 + gap / (1 + gap)


def cells(group_ids, replicas):
    """The rows of each group in each replica, in order of appearance."""
    found = {}
    for i, cell in enumerate(zip(group_ids, replicas)):
        if cell[0] >= 0:
            found.setdefault(cell, []).append(i)
    return list(found.values())


def one_each(group_ids, replicas):
    """The ids of the first prediction of each group in each replica; -1 for the others."""
    kept = {rows[0] for rows in cells(group_ids, replicas)}
    return [group if i in kept else -1 for i, group in enumerate(group_ids)]


def averaged(values, group_ids, replicas):
    """Each row as the mean of its group's rows in its replica."""
    rows = list(values.unbind())
    for cell in cells(group_ids, replicas):
        mean = sum(values[i] for i in cell) / len(cell)
        for i in cell:
            rows[i] = mean
    return torch.stack(rows)


def mean_logits(logits, sigmoid, group_ids, replicas, temperature=1.0):
    """Logits of the mean probabilities of each group in each replica."""
    scaled = logits.double() / temperature
    if sigmoid:
        return temperature * averaged(scaled.sigmoid(), group_ids, replicas).logit()
    return temperature * averaged(scaled.softmax(dim=1), group_ids, replicas).log()


def iou(a, b):
    """Intersection over union of two boxes, 0 where neither has an area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [max(x2 - x1, 0) * max(y2 - y1, 0) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def greedy_pairs(boxes_a, boxes_b, labels_a, labels_b, threshold):
    """The best free pair, again and again; equal ones by row, then by column."""
    free_a, free_b, pairs = set(range(len(boxes_a))), set(range(len(boxes_b))), []
    while True:
        candidates = [
            (-iou(boxes_a[i], boxes_b[j]), i, j)
            for i in free_a
            for j in free_b
            if labels_a[i] == labels_b[j]
        ]
        candidates = [c for c in candidates if -c[0] >= threshold and c[0] < 0]
        if not candidates:
            return sorted(pairs)
        _, i, j = min(candidates)
        pairs.append((i, j))
        free_a.remove(i)
        free_b.remove(j)


def hulls(boxes, group_ids):
    """For each box the smallest one around all boxes with its id."""
    found = []
    for group in group_ids:
        x1, y1, x2, y2 = zip(*(box for box, own in zip(boxes, group_ids) if own == group))
        found.append([min(x1), min(y1), max(x2), max(y2)])
    return found


def annotation(target, label, gt_boxes, gt_labels):
    """The annotation at the target's rounded box; of several, the first of its label."""
    there = [
        j for j, gt in enumerate(gt_boxes) if [round(x) for x in gt] == [round(x) for x in target]
    ]
    alike = [j for j in there if gt_labels[j] == label]
    return (alike or there)[0]


def mean_box(boxes):
    """The mean of each coordinate."""
    return [sum(values) / len(values) for values in zip(*boxes)]


def iou_groups(boxes, labels, valid, members, threshold):
    """One source after the other, one replica after the other: (R, K) ids, -1 without.

    A group is a list of (replica, slot); it stands for the mean of their boxes and for
    the label of the first.
    """
    ids = [[-1] * len(own) for own in labels]
    number = 0
    for replicas in members:
        groups = []
        for replica in replicas:
            if replica < 0:
                continue
            slots = [k for k, part in enumerate(valid[replica]) if part]
            means = [mean_box([boxes[r][k] for r, k in group]) for group in groups]
            pairs = greedy_pairs(
                [boxes[replica][k] for k in slots],
                means,
                [labels[replica][k] for k in slots],
                [labels[group[0][0]][group[0][1]] for group in groups],
                threshold,
            )
            joined = {slots[row]: group for row, group in pairs}
            for slot in slots:
                if slot in joined:
                    groups[joined[slot]].append((replica, slot))
                else:
                    groups.append([(replica, slot)])
        for group in groups:
            for replica, slot in group:
                ids[replica][slot] = number
            number += 1
    return ids
