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
        mean, own = mean[:size], row[size:]
        present = mean > 0
        return (mean[present] * (mean[present].log() - own[present])).sum()

    return consistency(torch.cat([log_p.exp(), log_p], dim=1), group_ids, divergence,
                       **options)


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


def gaussians(box):
    """The normal distributions of one box (4,): along x and along y."""
    x1, y1, x2, y2 = box.unbind()
    return [Normal((low + high) / 2, (high - low).clamp(min=MIN_BOX_SIDE) / 2)
            for low, high in ((x1, x2), (y1, y2))]


def box(boxes_xyxy, group_ids, **options):
    """``boxes_xyxy`` (N, 4): the KL of the two axes' normal distributions, summed."""

    def divergence(mean, row):
        return sum(kl_divergence(m, p) for m, p in zip(gaussians(mean), gaussians(row)))

    return consistency(boxes_xyxy.double(), group_ids, divergence, **options)


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
        candidates = [(-iou(boxes_a[i], boxes_b[j]), i, j)
                      for i in free_a for j in free_b if labels_a[i] == labels_b[j]]
        candidates = [c for c in candidates if -c[0] >= threshold and c[0] < 0]
        if not candidates:
            return sorted(pairs)
        _, i, j = min(candidates)
        pairs.append((i, j))
        free_a.remove(i)
        free_b.remove(j)
