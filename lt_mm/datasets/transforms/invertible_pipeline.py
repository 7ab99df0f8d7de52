"""The invertible pipeline: a stock pipeline whose geometry is recorded.

``dict(type='lt_mm.InvertiblePipeline', transforms=[<the stock list>])`` runs the stock
transforms one after the other and follows the boxes through them (see
:mod:`lt_mm.structures.recorded_boxes`). At packing the record becomes fields of the data
sample. A transform that breaks the record stops the run with its name.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from mmcv.transforms import BaseTransform

from lt_mm.datasets.transforms.annotation_cleaning import AnnotationCleaner
from lt_mm.datasets.transforms.applied_transforms import list_applied, tell_inner, told_by
from lt_mm.datasets.transforms.box_record import (
    BoxRecord,
    RecordedResults,
    check_entry,
    enter_loaded,
    lost_message,
)
from lt_mm.datasets.transforms.image_loading import (
    MAX_PIXELS,
    BadImageError,
    check_max_pixels,
    load_annotations,
    load_image,
    transform_image,
)
from lt_mm.datasets.transforms.mixing import Mixing
from lt_mm.datasets.transforms.packing import refuse_frames, write_record
from lt_mm.datasets.transforms.samples import (
    IS_WEAK,
    ORIGIN,
    path_of,
    source_key,
    source_shape,
    without_annotations,
)
from lt_mm.datasets.transforms.shared_loading import SharedLoading
from lt_mm.datasets.transforms.stand_ins import SkippedImages, StandIns
from lt_mm.datasets.transforms.stock_transforms import can_be_shared, loads, loads_boxes, name_of
from lt_mm.registry import TRANSFORMS, register
from lt_mm.structures import LostRecordError, MissingRecordError, Origin


@register(TRANSFORMS)
class InvertiblePipeline(BaseTransform):
    """Runs a stock MMDetection or MMPretrain pipeline and records its geometry.

    At packing, ``gt_instances`` and ``ignored_instances`` of a data sample get the fields
    of :class:`lt_mm.structures.InstanceRecord`, and the metainfo of the sample and of both
    gets those of :class:`lt_mm.structures.ImageRecord`. Classification samples get the
    same metainfo; their transforms record no geometry, so they have a ``source_matrix``
    only where nothing but loading and packing happened.

    Datasets that merge images (``MultiImageMixDataset``): wrap the inner pipeline,
    which loads, and the outer one, which mixes and packs. What the data set switches off by
    name (``skip_type_keys``, ``YOLOXModeSwitchHook``) is switched off in the wrapped list too,
    and images are drawn in the stock order. Outer transforms may also stay outside, with the
    packing wrapped alone: the record travels in the boxes.

    Consecutive samples of one source load and decode it once, and share what further
    transforms do right after loading, as long as they are known to draw nothing at random:
    the stock loaders, stock ``Resize`` and those in ``draws_nothing``. Each sample gets arrays
    of its own, so that transforms may write into them.

    Bad input, where this pipeline loads: an image that cannot be read, that is a truncated JPEG, of
    another size than the annotation file says, that OpenCV refuses to transform or that takes too
    much memory, is left out, counted and logged. The last good image takes the place of *all* its
    replicas, so that groups stay whole; only before the first good image the dataset has to find
    another. Annotated boxes that are not finite, without area or outside the image are dropped,
    counted and logged; instances whose mask cannot be decoded or has no pixel are ignored. For
    evaluation, where no image may take the place of another, set ``on_bad_image='raise'``.

    Args:
        transforms: The stock list, unchanged.
        image_only: Class names of further transforms that move no pixel but rebuild
            the boxes from numbers (``'Albu'`` with photometric augmentations alone).
            Their boxes must be found among those before it, to 0.01 px.
        sample_idx_offset: Added to ``sample_idx``, since data sets joined by ``ConcatDataset``
            count from 0 each. None: 0, until a sampler of this package or a ``ReplicaDataset``
            gives each data set a range of its own.
        max_refetch: How often augmentation of the same source is tried again where the stock
            pipeline rejects the result (``None``), before the last good image takes its place.
        on_bad_image: ``'skip'`` or ``'raise'``, for files that are there and cannot be
            used. The default is to skip: one damaged file says nothing about the rest.
        on_missing_image: ``'skip'`` or ``'raise'``, for files that do not exist. The
            default is to raise, as the stock loader does: a missing file mostly means
            a wrong path or an unfinished download.
        max_skipped: So many different images may be skipped, counted over all workers
            of a rank; None for any number. Twenty in a row always raise.
        max_pixels: An image whose header claims more pixels is not decoded, and left out like
            one that cannot be read. None: headers are not read. The default is Pillow's
            limit, half a gigabyte of RGB; a larger one needs Pillow's to be raised too.
        draws_nothing: Class names of loaders and other first transforms of your own that
            draw nothing at random, so that they run once for all replicas of a source. A
            loader that is neither stock nor named here runs for every replica.
        weak: The list of transforms, from loading to packing, of *weak* copies. A data set that
            shows some (:class:`~lt_mm.datasets.WithWeakCopies`) asks for them; all others see
            ``transforms`` alone.

    Raises:
        LostRecordError: A transform broke the record; the message names it.
        BadImageError: An image cannot be used, or too many cannot.
        FileNotFoundError: An image does not exist.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        image_only: Sequence[str] = (),
        sample_idx_offset: int | None = None,
        max_refetch: int = 15,
        on_bad_image: str = 'skip',
        on_missing_image: str = 'raise',
        max_skipped: int | None = 100,
        max_pixels: int | None = MAX_PIXELS,
        draws_nothing: Sequence[str] = (),
        weak: Sequence[Any] | None = None,
    ) -> None:
        if isinstance(transforms, (dict, str)) or not transforms:
            raise ValueError(
                f'transforms is {transforms!r}; expected the stock '
                'pipeline, a non-empty list of transforms'
            )
        self.transforms: list[Callable] = [
            TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms
        ]
        for transform in self.transforms:
            tell_inner(transform)
        names = [name_of(t) for t in self.transforms]
        refuse_frames(names)
        if not set(draws_nothing) <= set(names):
            raise ValueError(
                f'draws_nothing is {draws_nothing!r}; expected a list of class names among those '
                f'of its transforms, {names}'
            )
        self.given_offset = sample_idx_offset
        # A LabelledAndUnlabelled data set clears it.
        self.is_labelled = True
        self.is_weak = False
        self.number(sample_idx_offset or 0)
        self._rejected_key: tuple | None = None
        self.max_refetch = max_refetch
        self._max_pixels = check_max_pixels(max_pixels)
        self._num_loading = _count_leading(self.transforms, loads)
        self._num_shared = _count_leading(
            self.transforms, lambda each: can_be_shared(each, draws_nothing)
        )
        self._loading = SharedLoading()
        self._cleaner = AnnotationCleaner()
        skipped = SkippedImages(on_bad_image, on_missing_image, max_skipped)
        self._stand_ins = StandIns(skipped, max_refetch + 1)
        self._box_record = BoxRecord(image_only)
        self._mixing = Mixing(self.transforms, transforms, max(max_refetch, 1))
        if self._mixing.mixers:
            # MultiImageMixDataset asks only transforms that have this attribute.
            self.get_indexes = self._mixing.get_indexes
        self.weak: InvertiblePipeline | None = None
        if weak is not None:
            self.weak = self._weak_pipeline(weak, image_only, max_pixels)

    def _weak_pipeline(
        self, transforms: Sequence[Any], image_only: Sequence[str], max_pixels: int | None
    ) -> Any:
        """The pipeline of weak copies, which replaces the same bad images by the same others."""
        weak = InvertiblePipeline(
            transforms, image_only, max_refetch=self.max_refetch, max_pixels=max_pixels
        )
        if not (weak.is_loading and self.is_loading):
            raise ValueError(
                f'weak={transforms} stands beside transforms={self.transforms}; expected lists '
                "that both begin with loading, dict(type='LoadImageFromFile'), and end with packing"
            )
        weak.is_weak, weak._stand_ins = True, self._stand_ins
        return weak

    @property
    def is_loading(self) -> bool:
        """Whether it begins with transforms that load."""
        return self._num_loading > 0

    def number(
        self, offset: int, num_sources: int | None = None, num_replicas: int | None = None
    ) -> None:
        """Sets what the records of its samples say of their sources.

        Args:
            offset: Added to ``sample_idx``.
            num_sources: Every ``sample_idx`` must be below it; None for no limit.
            num_replicas: In how many samples a source is shown; None if not known.
        """
        self.sample_idx_offset = offset
        self._num_sources = num_sources
        self.num_replicas = num_replicas

    def continue_numbers(self, other: 'InvertiblePipeline') -> None:
        """Numbers its samples as another pipeline does, whose place it is to take."""
        offset = other.sample_idx_offset if self.given_offset is None else self.given_offset
        self.number(offset, other._num_sources, other.num_replicas)
        self.is_labelled = other.is_labelled

    def held_by(self, dataset: Any) -> None:
        """Follows the names of transforms that a ``MultiImageMixDataset`` skips.

        Args:
            dataset: The data set in whose list of transforms this pipeline is.
        """
        self._mixing.held_by(dataset)

    def transform(self, results: dict) -> dict | None:
        """Runs the transforms on one sample.

        Args:
            results: As the dataset gives it; needs ``sample_idx``.

        Returns:
            What the last transform gives, with the record if it packs; None where
            the sample cannot be used and no good one came before it.
        """
        check_entry(results)
        if results.get(IS_WEAK):
            return self._weak_copy(results)
        if ORIGIN in results:  # from the pipeline of the data set inside
            return self._sample(results)
        key, rejected = source_key(results), self._rejected_key
        # A data set looks for another image where its pipeline gave None.
        output = self._sample(self._entering(results, is_stand_in=rejected not in (None, key)))
        self._rejected_key = None if output is not None else rejected or key
        return output

    def _weak_copy(self, results: dict) -> dict | None:
        if self.weak is None:
            raise MissingRecordError(
                'the data set asks for a weak copy, and the InvertiblePipeline has no pipeline for '
                "it; expected dict(type='lt_mm.InvertiblePipeline', transforms=..., "
                'weak=[<loading, weak augmentations, packing>])'
            )
        entering = self._entering({name: results[name] for name in results if name != IS_WEAK})
        return self.weak._sample(entering)

    def load(self, results: dict) -> dict:
        """A source as the replicas start from it: what the transforms that load give.

        Args:
            results: As the dataset gives it; needs ``sample_idx``.

        Raises:
            BadImageError: The image cannot be used.
            FileNotFoundError: The image does not exist.
        """
        return self._load(RecordedResults(self._entering(results)), self._num_loading)

    def _entering(self, results: dict, is_stand_in: bool = False) -> dict:
        """A sample with its origin."""
        index = int(results['sample_idx'])  # some samplers give tensors
        if self._num_sources is not None and not 0 <= index < self._num_sources:
            raise LostRecordError(
                f'the sample has sample_idx={index}, but its data set has {self._num_sources} '
                'images and is joined with others, so the number may be that of another image; '
                'expected the place of the image in its data set, counted from 0'
            )
        origin = Origin(
            index + self.sample_idx_offset, self.num_replicas, is_stand_in, self.is_labelled
        )
        entering = results if self.is_labelled else without_annotations(results)
        return {**entering, ORIGIN: origin}

    def _sample(self, results: dict) -> dict | None:
        """Runs the transforms on a sample that has its origin."""
        if not self.is_loading:
            return self._mix(enter_loaded(results))
        return self._stand_ins.replica(results, self._replica)

    def _replica(self, results: dict) -> dict | None:
        """One replica of a source; None where every attempt is rejected."""
        results = {**results, ORIGIN: results[ORIGIN]._replace(is_weak=self.is_weak)}
        for _ in range(self.max_refetch + 1):
            loaded = self._loading.load(
                RecordedResults(results), lambda own: self._load(own, self._num_shared)
            )
            output = self._run(self.transforms[self._num_shared :], loaded)
            if output is not None:
                return output
        return None

    def _load(self, results: dict, num_transforms: int) -> dict:
        """Runs the first transforms."""
        loaded = self._run(self.transforms[:num_transforms], results)
        if loaded is None:
            raise BadImageError(f'the loading transforms reject {path_of(results)}')
        return loaded

    def _mix(self, results: dict) -> dict | None:
        """Runs the transforms on a loaded sample, as ``MultiImageMixDataset`` runs them."""
        given = results.pop('mix_results', None)  # called by hand, without a data set
        for place, transform in enumerate(self.transforms):
            if self._mixing.is_off(place):
                continue
            output = self._attempts(transform, results, self._mixing.draw(transform, given))
            if output is None or 'data_samples' in output:
                return output
            output.pop('mix_results', None)
            results = output
        return results

    def _attempts(
        self, transform: Callable, results: dict, images: list[dict] | None
    ) -> dict | None:
        """What a transform makes of copies of a sample; None where it rejects all of them."""
        if images is not None:
            results['mix_results'] = images
        for _ in range(self._mixing.num_attempts):
            output = self._run([transform], copy.deepcopy(results))
            if output is not None:
                return output
        return None

    def _run(self, transforms: Sequence[Callable], results: dict) -> dict | None:
        """Runs transforms until one rejects the sample or packs it."""
        for transform in transforms:
            if results.get('source_shape') is None:
                results['source_shape'] = source_shape(results)
            output = self._step(transform, results)
            if output is None or 'data_samples' in output:
                return output
            results = output
        return results

    def _step(self, transform: Callable, results: dict) -> dict | None:
        """Runs one transform and keeps the record."""
        before, told = self._box_record.before(transform, results), told_by(results)
        source_id = results[ORIGIN].source_id
        try:
            output = self._apply(transform, results)
            if output is None:
                return None
            if 'data_samples' in output:
                is_untouched = 0 < self._num_loading == len(self.transforms) - 1
                write_record(output['data_samples'], results, is_untouched)
                return output
            output = self._box_record.follow(transform, before, results, output, source_id)
        except LostRecordError as error:
            raise LostRecordError(lost_message(transform, error)) from error
        if not loads(transform):
            list_applied(transform, told, output)
        return output

    def _apply(self, transform: Callable, results: dict) -> Any:
        """Runs a transform, on annotations that it can use and with errors that name the image."""
        if loads_boxes(transform) and 'instances' in results:
            return self._cleaner.load(transform, results, self._load_annotations)
        if loads(transform):
            load = load_annotations if 'img' in results else load_image
            return load(transform, results, self._max_pixels)
        return transform_image(transform, results)

    def _load_annotations(self, transform: Callable, results: dict) -> Any:
        return load_annotations(transform, results, self._max_pixels)

    def __repr__(self) -> str:
        inner = ''.join(f'\n    {transform},' for transform in self.transforms)
        return f'{type(self).__name__}(transforms=[{inner}\n])'


def _count_leading(transforms: Sequence[Callable], condition: Callable[[Callable], bool]) -> int:
    """How many transforms come before the first that does not meet a condition."""
    return len(list(itertools.takewhile(condition, transforms)))
