"""Going on with a run where it stopped: with the next batch, and the same draws."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from torch.utils.data import DataLoader, Sampler

from lt_mm.core.seeds import seed_all
from lt_mm.models.mixins import InstanceMixin, mix_in
from lt_mm.registry import HOOKS, register

_DATA, _STEP = 0, 1  # streams of random numbers of one iteration


@register(HOOKS)
class ResumeHook(Hook):
    """Goes on where the checkpoint was saved, not at the start of that epoch.

    MMEngine's epoch-based loop starts the epoch anew when its checkpoint is from
    mid-epoch. Here the batches that were trained on are left out, without loading them;
    a validation that an interruption stopped is run first; and the sampler gets the
    seed that it had, which matters where ``randomness`` gives none.
    In the resumed epoch MMEngine counts the remaining batches from 1 in the log.
    Schedulers are saved without functions (``OneCycleLR`` keeps one, which it makes anew),
    so that the checkpoint holds no code.

    Args:
        seed_steps: Whether to make all random draws of an iteration a function of the
            seed, the rank and the number of the iteration: those of the data pipeline
            of a batch and those of the training step. A resumed run then ends with the
            weights of one that was not interrupted, bit for bit where the operators are
            deterministic, with any number of worker processes. Without it a resumed run
            sees the same images with other augmentations.

    Raises:
        ValueError: If a checkpoint of mid-epoch does not fit the data loader, if its
            batch sampler is not one of torch's, or if ``seed_steps`` cannot be kept: an
            iteration-based loop with worker processes needs mmengine 0.10.8 and a
            sampler that has ``skip``.
    """

    priority = 'LOWEST'

    def __init__(self, seed_steps: bool = False) -> None:
        self.seed_steps = seed_steps
        self._meta: dict[str, Any] = {}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._meta = checkpoint.get('meta', {})

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        _leave_out_functions(checkpoint.get('param_schedulers'))
        loader = runner.train_loop.dataloader
        checkpoint['meta'].update(
            num_batches=len(loader), sampler_seed=getattr(_sampler(loader), 'seed', None)
        )

    def before_train(self, runner) -> None:
        loop, resumed = runner.train_loop, runner.iter > 0
        if resumed:
            self._restore_sampler_seed(runner)
        num_done = 0
        if resumed and isinstance(loop, EpochBasedTrainLoop):
            num_done = self._num_batches_done(runner)
        if num_done or self.seed_steps:
            self._number_batches(loop, num_done)
        if self.seed_steps:
            self._seed_data(runner)
        if resumed and self._meta.get('validation_due'):
            runner.logger.info('The validation that was interrupted is run again')
            runner.val_loop.run()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.seed_steps:
            seed_all(runner.seed, get_rank(), runner.iter, _STEP)

    def _restore_sampler_seed(self, runner) -> None:
        seed = self._meta.get('sampler_seed')
        sampler = _sampler(runner.train_loop.dataloader)
        if seed is not None and seed != sampler.seed:
            sampler.seed = seed

    def _num_batches_done(self, runner) -> int:
        """Batches of the current epoch that the checkpoint has behind it."""
        num_batches = len(runner.train_loop.dataloader)
        num_saved = self._meta.get('num_batches', num_batches)
        num_done = runner.iter - runner.epoch * num_saved
        if num_done == 0:
            return 0
        if num_saved != num_batches or not 0 < num_done <= num_batches:
            raise ValueError(
                f'the checkpoint was saved in epoch {runner.epoch + 1} at iteration '
                f'{runner.iter}, with {num_saved} batches an epoch, and the data loader '
                f'has {num_batches}. Resume with the same data set, batch size and '
                'number of processes, or from the checkpoint of an epoch: '
                '--resume work_dirs/.../epoch_N.pth'
            )
        runner.logger.info(
            f'{num_done} of {num_batches} batches of epoch {runner.epoch + 1} are done and left out'
        )
        return num_done

    def _number_batches(self, loop: BaseLoop, num_done: int) -> None:
        batches = loop.dataloader.batch_sampler
        if not isinstance(batches, Sampler):
            raise ValueError(
                'ResumeHook expected a data loader with a batch sampler derived from '
                f"torch's BatchSampler, found {type(batches).__name__}; for example "
                "train_dataloader=dict(batch_sampler=dict(type='BatchSampler', "
                'drop_last=False))'
            )
        mix_in(_TrainBatches, batches)
        batches.num_done, batches.loop = num_done, loop
        batches.is_loaded_at_once = loop.dataloader.num_workers == 0

    def _seed_data(self, runner) -> None:
        loop = runner.train_loop
        loader = loop.dataloader
        if not isinstance(loop, EpochBasedTrainLoop):
            if loader.num_workers == 0:
                # In older versions it holds an iterator that began before this hook.
                loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)
            elif not (
                hasattr(loop.dataloader_iterator, 'skip_iter') and hasattr(loader.sampler, 'skip')
            ):
                raise ValueError(
                    f'ResumeHook(seed_steps=True) with num_workers={loader.num_workers} '
                    f'and {type(loader.sampler).__name__} cannot know which iteration a '
                    'batch is for in an iteration-based loop; expected num_workers=0, or '
                    "mmengine >= 0.10.8 and sampler=dict(type='InfiniteSampler')"
                )
        # torch asks a data set for this way to load a batch before the stock one.
        loader.dataset.__getitems__ = functools.partial(
            _load_seeded,
            loader.dataset,
            getattr(loader.dataset, '__getitems__', None),
            (runner.seed, get_rank()),
        )


def _leave_out_functions(schedulers: Any) -> None:
    """Removes functions from the states of schedulers, a list or lists by optimizer."""
    if isinstance(schedulers, dict):
        schedulers = itertools.chain(*schedulers.values())
    for state in schedulers or ():
        for key in [key for key, value in state.items() if callable(value)]:
            del state[key]


class _TrainBatches(Sampler, InstanceMixin):
    """Mixin: an epoch's batches, numbered by iteration, without those that are done.

    Derived from the base class of batch samplers first: Python changes the class of an
    instance only for one of the same layout.
    """

    prefix = 'Resumable'

    def __iter__(self) -> Iterator[list[int]]:
        num_done, self.num_done = self.num_done, 0
        number = self.loop.iter
        for batch in itertools.islice(super().__iter__(), num_done, None):
            # A loop may draw batches only to leave them out, but not in advance.
            yield _Batch(batch, self.loop.iter if self.is_loaded_at_once else number)
            number += 1


class _Batch(list):
    """Indices of the samples of a batch, and the iteration that it is for."""

    def __init__(self, indices: Sequence[int], number: int) -> None:
        super().__init__(indices)
        self.number = number

    def __reduce__(self):
        return _Batch, (list(self), self.number)


def _load_seeded(
    dataset: Any, load: Callable | None, seed: Sequence[int], batch: _Batch
) -> list[Any]:
    """Loads the samples of a batch; the draws are a function of what it is for."""
    seed_all(*seed, batch.number, _DATA)
    return load(batch) if load else [dataset[index] for index in batch]


def _sampler(loader: DataLoader) -> Any:
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
