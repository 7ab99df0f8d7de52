"""The consistency term: D_KL(mean prediction || each restored prediction).

For n predictions p_i, brought back to the source frame, and the indicator 1(i, j) of
:mod:`lt_mm.core.pairing`::

    term   = 1/n * sum_i D_KL( pbar_i || p_i )
    pbar_i = sum_j 1(i, j) p_j / sum_j 1(i, j)

All functions take the predictions of a batch and their group ids, and give a scalar
in float32 or wider, under autocast too. The gradient flows to every paired prediction,
and through the mean unless ``detach_mean``. A prediction without a positive adds 0;
with no pair at all the term is 0 and still has a graph. Finite predictions give a finite
term and, in float32 or wider, a finite gradient, however large they are; NaN stays NaN,
where it is paired. Time and memory are linear in the number of predictions: the mean is
a segment reduction.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.pairing import PairedGroups, paired_groups

# Smallest side of a box in pixels, so that a collapsed prediction has a finite KL.
MIN_BOX_SIDE = 1e-2
# Predictions beyond it count as it, without gradient: their sums stay finite.
_LARGEST = 1e30
# Likewise for what one box is off from the mean, in units of its own size.
_LARGEST_RATIO = 1e9
# Share of a box side's distribution that is spread over all bins of the group.
BIN_FLOOR = 1e-3
# Entries of a block of rows: what a processor's cache holds, or enough for a card.
_CPU_BLOCK, _DEVICE_BLOCK = 2**18, 2**20


def categorical_consistency(
    logits: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for softmax classifiers.

    Args:
        logits: (N, C), unnormalised; receives gradient.
        group_ids: (N,) integer, equal for positives of each other, negative for
            predictions without one.
        temperature: Divides the logits before the softmax.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or ``avg_factor`` is
            not positive.
        NotImplementedError: In the backward pass, if the gradient is to have a gradient.
    """
    _check(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        total = _CategoricalSum.apply(logits, groups, temperature, detach_mean)
        return total / (avg_factor or max(len(logits), 1))


class _CategoricalSum(torch.autograd.Function):
    """sum_i D_KL(pbar_i || p_i) of softmax predictions, with its own gradient.

    With p = softmax(z / T), and for a group g of m members the means pbar and L of
    their p and log p, all members share one mean, and the sum is one over groups::

        sum_g m <pbar, w>    with  w = log(pbar) - L

    Row k of the gradient, with respect to z_k / T, is what the KL of k itself says,
    p_k - pbar, and, through the mean, d sum / d pbar = m (w + 1), of which p_k has the
    share 1 / m. The 1 vanishes in the softmax, whose rows sum to one::

        p_k - pbar + p_k * (w - <p_k, w>)

    It is made in the forward pass, where the softmax is, and takes its place: one
    tensor (N, C) and two (G, C) are alive at most. Rows are worked on in blocks, so
    that what lies between is small, and stays in the cache of a processor.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, groups: PairedGroups, temperature: float, detach_mean: bool
    ) -> Tensor:
        p, mean, log_mean = _softmax_and_means(logits, groups, temperature)
        divergence, log_ratio = _divergence_of_groups(mean, log_mean)
        if ctx.needs_input_grad[0]:
            _softmax_to_gradient(p, mean, None if detach_mean else log_ratio, groups)
            ctx.save_for_backward(p)
            ctx.temperature = temperature
        return (groups.sizes * divergence).sum()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'categorical_consistency has no second derivative, and its gradient was '
                'asked for with create_graph=True: leave the term out of what is '
                'differentiated twice, such as a gradient penalty'
            )
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / ctx.temperature), None, None, None


def _softmax_and_means(
    logits: Tensor, groups: PairedGroups, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """P (N, C) in float32 at least, and for each group the means of p and log p.

    Both means are (G + 1, C); the last row stands for the unpaired, and is 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    p = torch.empty_like(logits, dtype=dtype)
    mean = p.new_zeros(len(groups.sizes), p.shape[1])
    log_mean, log_totals = torch.zeros_like(mean), mean.new_zeros(len(mean), 1)
    for rows, own, numbers in _blocks(logits, p, groups.numbers):
        rows = rows.to(dtype)
        shifted = rows - rows.amax(dim=1, keepdim=True)
        if temperature != 1:
            shifted.div_(temperature)
        log_mean.index_add_(0, numbers, shifted)
        totals = shifted.exp_().sum(dim=1, keepdim=True)
        torch.div(shifted, totals, out=own)
        mean.index_add_(0, numbers, own)
        log_totals.index_add_(0, numbers, totals.log_())
    counts = groups.sizes[:, None].clamp(min=1)
    for pbar, log_pbar, totals, count in _blocks(mean, log_mean, log_totals, counts):
        pbar.div_(count)
        # Far below the largest a logit has -inf here; sums have to stay finite.
        log_pbar.sub_(totals).div_(count).clamp_(min=-_LARGEST)
    mean[-1].zero_()
    log_mean[-1].zero_()
    return p, mean, log_mean


def _divergence_of_groups(mean: Tensor, log_mean: Tensor) -> tuple[Tensor, Tensor]:
    """<pbar, w> (G,) and w = log(pbar) - L (G, C), which takes the place of L."""
    divergence = mean.new_empty(len(mean))
    for pbar, log_ratio, own in _blocks(mean, log_mean, divergence):
        # pbar * log(pbar) tends to 0 with pbar, and so does its gradient there.
        logarithm = pbar.clamp(min=torch.finfo(pbar.dtype).tiny).log_()
        torch.sub(logarithm, log_ratio, out=log_ratio)
        torch.sum(pbar * log_ratio, dim=1, out=own)
    return divergence, log_mean


def _softmax_to_gradient(
    p: Tensor, mean: Tensor, log_ratio: Tensor | None, groups: PairedGroups
) -> None:
    """Writes the gradient over p (N, C); without w the mean counts as constant."""
    bits = torch.int64 if p.dtype == torch.float64 else torch.int32
    for own, numbers, paired in _blocks(p, groups.numbers, groups.paired):
        if log_ratio is not None:
            through = log_ratio.index_select(0, numbers).mul_(own)
            share = 1 - through.sum(dim=1, keepdim=True)
            torch.addcmul(through, own, share, out=own)
        own.sub_(mean.index_select(0, numbers))
        # Zeros for the unpaired, whatever they hold. On the bits, since masked_fill_
        # takes ten times as long on a CPU.
        own.view(bits).bitwise_and_(-paired[:, None].to(bits))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same consecutive rows of all tensors, the first being (N, C)."""
    entries = _CPU_BLOCK if tensors[0].device.type == 'cpu' else _DEVICE_BLOCK
    num_rows = max(entries // max(tensors[0].shape[1], 1), 1)
    return zip(*(tensor.split(num_rows) for tensor in tensors))


def bernoulli_consistency(
    logits: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for sigmoid classifiers: the sum of the Bernoulli KLs of all classes.

    Args:
        logits: (N, C), unnormalised, one independent Bernoulli each; receives
            gradient.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        temperature: Divides the logits before the sigmoid.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or ``avg_factor`` is
            not positive.
    """
    _check(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _only(groups.paired, logits) / temperature
        divergence = _bernoulli_divergence(scaled, groups, detach_mean)
        return _average(divergence.sum(dim=1), groups.paired, avg_factor)


def box_consistency(
    boxes_xyxy: Tensor,
    group_ids: Tensor,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for boxes: KL between the axis-aligned Gaussians of two boxes.

    A box is the Gaussian whose mean is its centre and whose standard deviation is
    half its side, in x and in y. With the mean box (mu, sigma) and a box (mu_i,
    sigma_i), for each axis::

        log(sigma_i / sigma) + (sigma^2 + (mu - mu_i)^2) / (2 sigma_i^2) - 1/2

    It does not change when all boxes are scaled or shifted alike.

    Args:
        boxes_xyxy: (N, 4), restored to the source image, pixels; receives gradient.
            Sides below ``MIN_BOX_SIDE`` count as ``MIN_BOX_SIDE``.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit or ``avg_factor`` is not positive.
    """
    _check(boxes_xyxy, group_ids, avg_factor)
    if boxes_xyxy.shape[1] != 4:
        raise ValueError(
            f'boxes have shape {tuple(boxes_xyxy.shape)}; expected (N, 4), '
            'xyxy, one box for each prediction'
        )
    groups = paired_groups(group_ids)
    with torch.autocast(boxes_xyxy.device.type, enabled=False):
        boxes = _only(groups.paired, boxes_xyxy)
        # Squares, and the gradients of quotients, leave float32 long before boxes do.
        center, sigma = _gaussians(boxes.double())
        mean_center, mean_sigma = _gaussians(_group_mean(boxes.double(), groups, detach_mean))
        ratio = mean_sigma / sigma
        offset = ((mean_center - center) / sigma).clamp(-_LARGEST_RATIO, _LARGEST_RATIO)
        squares = ratio.clamp(max=_LARGEST_RATIO).square() + offset.square()
        divergence = (squares / 2 - ratio.log() - 0.5).sum(dim=1)
        return _average(divergence, groups.paired, avg_factor).to(boxes.dtype)


def mask_consistency(
    mask_logits: Tensor,
    inside: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for masks: the mean Bernoulli KL over the pixels of a canonical grid.

    A pixel counts for those masks of a group that say something about it, where at
    least two do; their mean is taken pixel by pixel.

    Args:
        mask_logits: (N, H, W), unnormalised, on the same grid of the source instance
            for all masks of a group (:func:`lt_mm.core.geometry.masks_to_source`);
            receives gradient.
        inside: (N, H, W) bool, whether the mask says something about the pixel.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        temperature: Divides the logits before the sigmoid.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or ``avg_factor`` is
            not positive.
    """
    if mask_logits.dim() != 3 or inside.shape != mask_logits.shape:
        raise ValueError(
            f'masks have shape {tuple(mask_logits.shape)} and inside '
            f'{tuple(inside.shape)}; expected (N, H, W) both'
        )
    logits, inside = mask_logits.flatten(1), inside.flatten(1)
    _check(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _only(groups.paired, logits) / temperature
        seen = inside.to(scaled)
        shared = (seen > 0) & (_group_sum(seen, groups) > 1)
        divergence = _bernoulli_divergence(scaled, groups, detach_mean, weights=seen)
        pixels = shared.sum(dim=1)
        mean = torch.where(shared, divergence, 0).sum(dim=1) / pixels.clamp(min=1)
        return _average(mean, groups.paired, avg_factor)


def side_consistency(
    side_logits: Tensor,
    positions: Tensor,
    group_ids: Tensor,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for boxes whose sides are predicted as distributions (GFL): their true KL.

    Each prediction spreads the probability of a side over K positions of its own. They
    are brought to common bins, for each group and side 2K + 1 of them around the mean
    expected position, as wide as the group's widest spacing; a position between two
    bins is shared by them linearly, one outside counts for the last bin. There the KL
    of the mean distribution to each is summed over the bins and the four sides. A share
    ``BIN_FLOOR`` of each distribution is uniform, so that bins which one prediction
    cannot reach cost a finite amount. The bins count as constant in the gradient.

    Args:
        side_logits: (N, 4, K), unnormalised, for the left, top, right and bottom side
            in the source image; receives gradient.
        positions: (N, 4, K), where each lies in the source image, evenly spaced;
            pixels; no gradient.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit or ``avg_factor`` is not positive.
    """
    shape = tuple(side_logits.shape)
    if len(shape) != 3 or shape[1] != 4 or not shape[2] or positions.shape != shape:
        raise ValueError(
            f'side logits have shape {shape} and positions '
            f'{tuple(positions.shape)}; expected (N, 4, K) both, K > 0'
        )
    _check(side_logits.flatten(1), group_ids, avg_factor)
    groups = paired_groups(group_ids)
    with torch.autocast(side_logits.device.type, enabled=False):
        wide = _only(groups.paired, side_logits.flatten(1)).view_as(side_logits)
        places = torch.where(groups.paired[:, None, None], positions.detach(), 0)
        spread = _in_common_bins(wide.softmax(dim=2), places, groups)
        log_p = spread.log().flatten(1)
        mean = _group_mean(spread.flatten(1), groups, detach_mean)
        divergence = (mean * (mean.log() - log_p)).sum(dim=1)
        return _average(divergence, groups.paired, avg_factor)


def _in_common_bins(probabilities: Tensor, positions: Tensor, groups: PairedGroups) -> Tensor:
    """Distributions (N, 4, K) over own positions, over bins of the group: (N, 4, 2K+1)."""
    count = probabilities.shape[2]
    expected = (probabilities * positions).sum(dim=2)
    middle = _group_mean(expected, groups, detach=True)
    spacing = (positions[..., -1] - positions[..., 0]).abs() / max(count - 1, 1)
    numbers = groups.numbers[:, None].expand(-1, 4)
    widest = spacing.new_zeros(len(groups.sizes), 4).scatter_reduce_(0, numbers, spacing, 'amax')
    width = widest.gather(0, numbers).clamp(min=MIN_BOX_SIDE)
    places = (positions - middle[..., None]) / width[..., None] + count
    places = places.clamp(0, 2 * count)
    low = places.floor().clamp(max=2 * count - 1)
    share = (places - low).to(probabilities)
    bins = probabilities.new_zeros(*probabilities.shape[:2], 2 * count + 1)
    bins = bins.scatter_add(2, low.long(), probabilities * (1 - share))
    bins = bins.scatter_add(2, low.long() + 1, probabilities * share)
    return (1 - BIN_FLOOR) * bins + BIN_FLOOR / bins.shape[2]


def _gaussians(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, both (N, 2), of the Gaussians of boxes (N, 4)."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return (low + high) / 2, (high - low).clamp(min=MIN_BOX_SIDE) / 2


def _bernoulli_divergence(
    logits: Tensor, groups: PairedGroups, detach_mean: bool, weights: Tensor | None = None
) -> Tensor:
    """D_KL(pbar_i || p_i) of every Bernoulli by itself: logits (N, D) to (N, D)."""
    divergence = torch.zeros_like(logits)
    for signed in (logits, -logits):  # p and 1 - p, without cancellation
        log_p = F.logsigmoid(signed)
        mean = _group_mean(torch.sigmoid(signed), groups, detach_mean, weights)
        log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        divergence = divergence + mean * (log_mean - log_p)
    return divergence


def _group_mean(
    values: Tensor, groups: PairedGroups, detach: bool, weights: Tensor | None = None
) -> Tensor:
    """pbar: for each row of values (N, D) the mean of its group's rows, (N, D).

    With weights (N, D) of 0 and 1, the mean of those entries that have 1; 0 where none
    has.
    """
    if detach:
        values = values.detach()
    if weights is None:
        return _group_sum(values, groups) / groups.sizes[groups.numbers, None]
    return _group_sum(values * weights, groups) / _group_sum(weights, groups).clamp(min=1)


def _group_sum(values: Tensor, groups: PairedGroups) -> Tensor:
    """For each row of values (N, D) the sum of its group's rows, (N, D)."""
    sums = values.new_zeros(len(groups.sizes), values.shape[1])
    return sums.index_add(0, groups.numbers, values)[groups.numbers]


def _average(divergence: Tensor, paired: Tensor, avg_factor: float | None) -> Tensor:
    if avg_factor is None:
        avg_factor = max(len(divergence), 1)
    return torch.where(paired, divergence, 0).sum() / avg_factor


def _only(paired: Tensor, predictions: Tensor) -> Tensor:
    """Predictions (N, D) in float32 at least, with zeros for the unpaired.

    Half precision loses small divergences. An unpaired prediction may be anything, as
    a box that no matrix brings back; left in, its overflow would be 0 in the term but
    0 * inf, NaN, in the gradient.
    """
    wide = predictions if predictions.dtype == torch.float64 else predictions.float()
    return torch.where(paired[:, None], wide, 0).clamp(-_LARGEST, _LARGEST)


def _check(
    predictions: Tensor, group_ids: Tensor, avg_factor: float | None, temperature: float = 1.0
) -> None:
    if predictions.dim() != 2 or group_ids.shape != predictions.shape[:1]:
        raise ValueError(
            f'predictions have shape {tuple(predictions.shape)} and group ids '
            f'{tuple(group_ids.shape)}; expected (N, C) and (N,)'
        )
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f'group ids are {group_ids.dtype}; expected integers')
    if not temperature > 0:
        raise ValueError(f'temperature is {temperature}; expected a positive number')
    if avg_factor is not None and not avg_factor > 0:
        raise ValueError(
            f'avg_factor is {avg_factor}; expected a positive number, as '
            'max(number of predictions, 1)'
        )
