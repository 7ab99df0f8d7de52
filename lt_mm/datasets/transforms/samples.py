"""What a sample, the ``results`` of a pipeline, tells of its source image."""

# The results key of a sample's Origin. It travels from the pipeline that loads a sample to
# the one that packs it.
ORIGIN = 'source_origin'

# The results key by which a data set asks its pipeline for a weak copy.
IS_WEAK = 'is_weak_copy'

# By these names stock data sets give annotations.
_ANNOTATIONS = ('gt_label', 'gt_score', 'seg_map_path', 'sem_seg', 'segments_info')


def as_stand_in(results: dict) -> dict:
    """A sample that takes the place of another one."""
    return {**results, ORIGIN: results[ORIGIN]._replace(is_stand_in=True)}


def source_key(results: dict) -> tuple:
    """Equal for the replicas of a source, different for different sources."""
    return results['sample_idx'], results.get('img_path')


def source_shape(results: dict) -> tuple[int, int] | None:
    """(height, width) of the source image; None before it is loaded."""
    shape = results.get('ori_shape')
    if shape is None and 'img' in results:
        shape = results['img'].shape
    return None if shape is None else tuple(shape[:2])


def path_of(results: dict) -> str:
    """The path of the image, or words for one that has none."""
    return results.get('img_path') or f'the image of sample_idx {results["sample_idx"]}'


def without_annotations(results: dict) -> dict:
    """A sample as its data set would give it if nobody had annotated the image."""
    kept = {name: value for name, value in results.items() if name not in _ANNOTATIONS}
    return {**kept, 'instances': []} if 'instances' in kept else kept
