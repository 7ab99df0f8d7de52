"""Errors that several packages raise, and the config lines that put them right."""

RECORD_HINT = (
    'wrap the whole training pipeline: train_dataloader.dataset.pipeline = '
    "[dict(type='lt_mm.InvertiblePipeline', transforms=<the stock list>)]; the switch_pipeline of "
    'a PipelineSwitchHook in custom_hooks likewise'
)
SAMPLER_HINT = (
    "use train_dataloader.sampler = dict(type='lt_mm.GroupedRepeatAugSampler', num_repeats=m) with "
    'm >= 2 and a train_dataloader.batch_size that m divides (an epoch then has m times the steps; '
    "mode='v1' in the sampler keeps its length); with placement='spread', which puts "
    'replicas on different ranks, also across_ranks=True in the LossTransformHead'
)
HEAD_HINT = (
    "wrap the head: model.head (or bbox_head, or roi_head) = dict(type='lt_mm.LossTransformHead', "
    'head=<the stock head>); for repetition alone as a baseline with rho=0, which logs the terms '
    'and leaves the stock loss as it is'
)
SAMPLE_IDX_OFFSET_HINT = (
    'Data sets joined by ConcatDataset count from 0 each. The samplers of lt_mm and ReplicaDataset '
    'give each a range of its own where no InvertiblePipeline has a sample_idx_offset, so remove '
    'these; with other samplers, set them: '
    "dict(type='lt_mm.InvertiblePipeline', sample_idx_offset=<sum of the lengths before "
    'it>, transforms=...)'
)
PREPROCESSOR_HINT = (
    "data_preprocessor = dict(type='lt_mm.GroupedClsDataPreprocessor', "
    '<the arguments of the stock one>)'
)


class LostRecordError(ValueError):
    """A transform broke the record of where boxes come from."""


class MissingRecordError(ValueError):
    """A data sample does not say which source it is a replica of."""


class UnpairedBatchError(ValueError):
    """The batches have no replicas to pair, or only parts of groups."""


class UnsupportedHeadError(TypeError):
    """The head's predictions cannot be grouped by instance."""
