"""Batch augments of MMPretrain for batches of replicas: mixup, CutMix and Cutout.

MMPretrain calls a batch augment with images and labels only, so none of its own can know
which samples are replicas of one source. :class:`GroupedClsDataPreprocessor` runs the
stock preprocessing, and then calls the augment with the source ids too.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.models.utils.batch_augments import CutMix, Mixup
from mmpretrain.structures import DataSample
from torch import Tensor

from lt_mm.core.mixing import mix, mixing_partners, number_sources, paste_box, square_masks
from lt_mm.registry import BATCH_AUGMENTS, MODELS, register
from lt_mm.structures.errors import PREPROCESSOR_HINT
from lt_mm.structures.record import source_ids_of


class MixedBatch(NamedTuple):
    """What a grouped augment made of a batch.

    Attributes:
        inputs: (N, C, H, W) images.
        scores: (N, num_classes) float labels.
        partners: (N,) int64 on the CPU, the row that each row was mixed with; None
            where nothing was mixed.
        lam: Share of the row's own label.
    """

    inputs: Tensor
    scores: Tensor
    partners: Tensor | None = None
    lam: float = 1.0


class GroupedAugment:
    """Base of the batch augments that treat all replicas of a source alike."""

    def mix_replicas(self, inputs: Tensor, scores: Tensor, source_ids: Sequence[int]) -> MixedBatch:
        """Augments a batch.

        Args:
            inputs: (N, C, H, W) images; may be overwritten.
            scores: (N, num_classes) float labels, equal for replicas of one source.
            source_ids: N numbers, equal for replicas of one source.
        """
        raise NotImplementedError

    def __call__(self, inputs: Tensor, scores: Tensor) -> Any:
        """What the stock preprocessor calls.

        Raises:
            TypeError: Always; without source ids replicas cannot be mixed alike.
        """
        raise TypeError(
            f'{type(self).__name__} was called without the source ids, by the stock '
            'ClsDataPreprocessor; expected the preprocessor that knows the replicas: '
            f'{PREPROCESSOR_HINT}'
        )


@register(BATCH_AUGMENTS)
class GroupedMixup(GroupedAugment, Mixup):
    """Mixup that mixes all replicas of a source with one partner source.

    One lambda ~ Beta(alpha, alpha) a batch, as in the stock Mixup, whose result it
    gives (same seed) where every source has one replica. A source may become its own
    partner, and does where a batch has no other.

    Args:
        alpha: Parameter of the Beta distribution, a float > 0.
    """

    def mix_replicas(self, inputs: Tensor, scores: Tensor, source_ids: Sequence[int]) -> MixedBatch:
        lam = float(np.random.beta(self.alpha, self.alpha))
        partners = _draw_partners(source_ids)
        rows = partners.to(inputs.device)
        return MixedBatch(mix(inputs, rows, lam), mix(scores, rows, lam), partners, lam)


@register(BATCH_AUGMENTS)
class GroupedCutMix(GroupedAugment, CutMix):
    """CutMix that pastes one partner source into all replicas of a source.

    One lambda and one box a batch, as in the stock CutMix, whose result it gives (same
    seed) where every source has one replica.

    Args:
        alpha: Parameter of the Beta distribution, a float > 0.
        cutmix_minmax: Least and greatest side of the box, as parts of the image's;
            replaces ``alpha``.
        correct_lam: Whether the label follows the real area of the box, which the
            border may have clipped.
    """

    def mix_replicas(self, inputs: Tensor, scores: Tensor, source_ids: Sequence[int]) -> MixedBatch:
        lam = np.random.beta(self.alpha, self.alpha)
        partners = _draw_partners(source_ids)
        box, lam = self.cutmix_bbox_and_lam(tuple(inputs.shape[-2:]), lam)
        rows, lam = partners.to(inputs.device), float(lam)
        return MixedBatch(paste_box(inputs, rows, box), mix(scores, rows, lam), partners, lam)


@register(BATCH_AUGMENTS)
class Cutout(GroupedAugment):
    """Erases one square of each image, at a place of its own; labels stay as they are.

    The centre is uniform over the pixels and the square is clipped at the border. It is
    filled with 0: after the preprocessor's normalisation that is the mean colour. It
    works under the stock ``ClsDataPreprocessor`` too, since it needs no sources.

    Args:
        length: Side of the square in pixels.
        ratio: Side of the square as a part of the image's shorter side, in (0, 1];
            instead of ``length``.
        prob: Probability that an image is cut, for each image on its own.

    Raises:
        ValueError: If neither or both of ``length`` and ``ratio`` are given, or an
            argument is out of range.
    """

    def __init__(
        self, length: int | None = None, ratio: float | None = None, prob: float = 1.0
    ) -> None:
        if (length is None) == (ratio is None):
            raise ValueError(
                f'length is {length} and ratio is {ratio}; expected one of '
                'them, such as length=16 for CIFAR-10'
            )
        if length is not None and not (length == int(length) and length > 0):
            raise ValueError(f'length is {length}; expected pixels, an integer > 0')
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f'ratio is {ratio}; expected a part of the side, in (0, 1]')
        if not 0 <= prob <= 1:
            raise ValueError(f'prob is {prob}; expected a probability in [0, 1]')
        self.length = length
        self.ratio = ratio
        self.prob = prob

    def mix_replicas(self, inputs: Tensor, scores: Tensor, source_ids: Sequence[int]) -> MixedBatch:
        return MixedBatch(self._cut(inputs), scores)

    def __call__(self, inputs: Tensor, scores: Tensor) -> Any:
        """Cuts a batch; see the class. Returns images and float labels."""
        return self._cut(inputs), scores.float()

    def _cut(self, inputs: Tensor) -> Tensor:
        count, _, height, width = inputs.shape
        ratio = self.ratio or 0.0
        length = self.length or max(round(ratio * min(height, width)), 1)
        centers = torch.stack(
            [torch.randint(height, (count,)), torch.randint(width, (count,))], dim=1
        )
        chosen = torch.rand(count) < self.prob
        erased = square_masks(centers, length, (height, width)) & chosen[:, None, None]
        return inputs.masked_fill(erased[:, None].to(inputs.device), 0)


@register(MODELS)
class GroupedClsDataPreprocessor(ClsDataPreprocessor):
    """The stock ``ClsDataPreprocessor`` with batch augments that know the replicas.

    Takes the stock arguments. The augments are given as for the stock one, by
    ``model.train_cfg`` (``dict(augments=[...], probs=[...])``) or by
    ``data_preprocessor.batch_augments``, and one is picked for each batch with the
    probabilities of the stock ``RandomBatchAugment``; hooks that exchange
    ``batch_augments`` (``SwitchRecipeHook``) work. A stock ``Mixup`` or ``CutMix`` among them
    is taken for a :class:`GroupedMixup` or :class:`GroupedCutMix` with the same arguments, so
    a config needs no other augments.

    In training with augments, the metainfo of every data sample gets
    ``mixed_source_id``, the source that it was mixed with (its own where nothing was
    mixed), and ``mix_lambda``, the share of its own label (1.0 where nothing was).

    Raises:
        TypeError: If an augment does not know replicas, such as the stock ResizeMix.
        MissingRecordError: In training, if a data sample has no source id.
    """

    def __init__(self, *args: Any, batch_augments: dict | None = None, **kwargs: Any) -> None:
        if batch_augments and batch_augments.get('probs') is not None:
            # The stock class appends to the list that it is given, here a config's.
            probs = np.atleast_1d(batch_augments['probs']).tolist()
            batch_augments = dict(batch_augments, probs=probs)
        super().__init__(*args, batch_augments=batch_augments, **kwargs)
        if self.batch_augments is not None:
            _grouped(self.batch_augments.augments)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocesses a batch; see the class."""
        # The stock class uses `training` for nothing but its batch augments.
        data = super().forward(data, training=False)
        samples = data['data_samples']
        if training and self.batch_augments is not None and _have_scores(samples):
            data['inputs'] = self._augment(data['inputs'], samples)
        return data

    def _augment(self, inputs: Tensor, samples: list[DataSample]) -> Tensor:
        augments = _grouped(self.batch_augments.augments)
        source_ids = source_ids_of(samples)
        scores = torch.stack([sample.gt_score for sample in samples]).float()
        augment = augments[np.random.choice(len(augments), p=self.batch_augments.probs)]
        mixed = (
            MixedBatch(inputs, scores)
            if augment is None
            else augment.mix_replicas(inputs, scores, source_ids)
        )
        rows = range(len(samples)) if mixed.partners is None else mixed.partners.tolist()
        for sample, score, row in zip(samples, mixed.scores, rows):
            sample.set_gt_score(score)
            sample.set_metainfo(dict(mixed_source_id=source_ids[row], mix_lambda=mixed.lam))
        return mixed.inputs


def _draw_partners(source_ids: Sequence[int]) -> Tensor:
    ids = torch.tensor(source_ids)
    return mixing_partners(ids, torch.randperm(int(number_sources(ids).max()) + 1))


# Stock augments, of which the grouped ones differ in the choice of partners alone.
_GROUPED: dict[type, type] = {Mixup: GroupedMixup, CutMix: GroupedCutMix}


def _grouped(augments: Sequence[Any]) -> list[Any]:
    """The augments, which know replicas, in the place of stock ones."""
    return [None if augment is None else _grouped_augment(augment) for augment in augments]


def _grouped_augment(augment: Any) -> GroupedAugment:
    if isinstance(augment, GroupedAugment):
        return augment
    if type(augment) not in _GROUPED:
        raise TypeError(
            f'the batch augment {type(augment).__name__} does not know which samples are '
            'replicas of one source; expected Mixup, CutMix, lt_mm.Cutout, or a subclass of '
            'lt_mm.models.batch_augments.GroupedAugment in model.train_cfg.augments (or '
            'data_preprocessor.batch_augments)'
        )
    grouped = copy.copy(augment)
    grouped.__class__ = _GROUPED[type(augment)]
    return grouped


def _have_scores(samples: list[Any] | None) -> bool:
    if not samples or not isinstance(samples[0], DataSample):
        return False
    return 'gt_score' in samples[0]
