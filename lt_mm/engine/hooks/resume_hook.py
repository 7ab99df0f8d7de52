"""Resuming a run where it stopped: with the next batch, and the same random draws."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader, Sampler, get_worker_info

from lt_mm.core.seeds import seed_all
from lt_mm.engine.checkpoints import check_strategy
from lt_mm.engine.data_position import DataPosition, PlacedStream, sampler_of
from lt_mm.engine.validations import ValidationRecord, validation_follows
from lt_mm.models.mixins import InstanceMixin, mix_in
from lt_mm.registry import HOOKS, register

_DATA, _STEP = 0, 1  # streams of random numbers of one iteration


@register(HOOKS)
class ResumeHook(Hook):
    """Resumes where the checkpoint was saved, not at the start of that epoch.

    MMEngine's epoch-based loop repeats the epoch when its checkpoint is from mid-epoch, and
    its iteration-based loop leaves out as many batches of the present size as there were
    iterations. With this hook, the batches that were trained on are skipped without loading
    them. With another batch size, number of processes or data set, the sources that are left of
    the pass are dealt out anew, each once. A validation that was interrupted is run first. The
    sampler gets the seed that it had, which matters where ``randomness`` gives none. Schedulers
    are saved without functions (``OneCycleLR`` keeps one, which it makes again), so that the
    checkpoint holds no code.

    The hook gives the runner's training batch sampler, this one object, a class that
    derives from its own (:func:`lt_mm.models.mixins.mix_in`), and sets the ``seed`` of the
    sampler, which gets such a class too if it goes on in another layout. It replaces the
    ``dataloader_iterator`` of an iteration-based loop that is resumed, or with ``seed_steps`` and
    without worker processes, by a new one. These changes stay with the runner. The data set is
    left as it is. The numbers of the validations that came to their end are kept in the work
    directory, in ``.validated``.

    Args:
        seed_steps: Whether all random draws of an iteration, in the data pipeline of its
            batch and in the training step, become a function of the seed, the rank and
            the number of the iteration. A resumed run then ends with the weights of a run
            that was not interrupted, bit for bit where the operators are deterministic,
            with any number of worker processes. Otherwise a resumed run sees the same
            images with other augmentations.

    Raises:
        ValueError: If a checkpoint does not fit the data loader and it is not known which
            sources are left, if the batch sampler does not derive from torch's ``Sampler``,
            or if ``seed_steps`` is impossible: an iteration-based loop with worker processes needs
            mmengine 0.10.8 and a sampler that has ``skip``.
    """

    priority = 'LOWEST'

    def __init__(self, seed_steps: bool = False) -> None:
        self.seed_steps = seed_steps
        self._meta: dict[str, Any] = {}
        self._position: DataPosition | None = None
        self._validations: ValidationRecord | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._meta = checkpoint.get('meta', {})

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        _leave_out_functions(checkpoint.get('param_schedulers'))
        meta = checkpoint['meta']
        seed = getattr(sampler_of(runner.train_loop.dataloader), 'seed', None)
        meta.update(sampler_seed=seed)
        if self._position is not None:
            meta.update(position=self._position.state(meta['epoch'], meta['iter']))
            meta.setdefault('validation_due', validation_follows(runner, meta))

    def before_train(self, runner: Any) -> None:
        check_strategy(runner)
        loop, resumed = runner.train_loop, runner.iter > 0
        batches = loop.dataloader.batch_sampler
        if isinstance(batches, _TrainBatches):  # of an earlier training of this runner
            batches.num_done, batches.seed = 0, None
        self._position = position = DataPosition(loop)
        if resumed:
            self._restore_sampler_seed(runner)
        num_done = self._place(runner, position) if resumed else 0
        if num_done or self.seed_steps:
            self._number_batches(runner, num_done)
        if runner.val_loop is None:
            return
        validations = self._validations = ValidationRecord(runner)
        if resumed and self._meta.get('validation_due') and not validations.has(runner.iter):
            runner.logger.info('Repeating the validation that was interrupted')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Any) -> None:
        if self._position is not None:
            self._position.begin_epoch(runner.epoch, runner.iter)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.seed_steps:
            seed_all(runner.seed, get_rank(), runner.iter, _STEP)

    def after_val(self, runner: Any) -> None:
        if self._validations is not None:
            self._validations.add(runner.iter)

    def after_train(self, runner: Any) -> None:
        self._position = self._validations = None

    def _restore_sampler_seed(self, runner: Any) -> None:
        seed = self._meta.get('sampler_seed')
        sampler = sampler_of(runner.train_loop.dataloader)
        if seed is not None and seed != sampler.seed:
            sampler.seed = seed

    def _place(self, runner: Any, position: DataPosition) -> int:
        """Goes on with the data where the checkpoint was saved.

        Returns:
            How many batches of the first epoch, or of the stream, are still to be left out.
        """
        loop, state = runner.train_loop, self._meta.get('position')
        if state is None:  # of an older version
            num_done = self._num_batches_done(runner)
            position.leave_out(num_done)
            return num_done
        if getattr(loop, 'fast_forward_on_resume', False):  # the user wants a new stream
            return 0
        num_batches = len(loop.dataloader)
        changes = position.restore(state)
        if isinstance(loop, EpochBasedTrainLoop):
            _count_iterations(runner, num_batches, len(loop.dataloader) - position.num_done)
        if position.is_placed:
            loop.dataloader_iterator = PlacedStream(loop.dataloader, runner.iter)
        if changes is not None:
            runner.logger.warning(
                f'Resumed in another layout than before: {changes}. {_consequences(runner)}'
            )
        elif position.num_done and not position.is_placed:
            runner.logger.info(
                f'Skipping {position.num_done} of {len(loop.dataloader)} batches of epoch '
                f'{runner.epoch + 1}: done before'
            )
        return position.num_done

    def _num_batches_done(self, runner: Any) -> int:
        """Batches of the current epoch that are done in a checkpoint of an older version."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return 0
        num_batches = len(runner.train_loop.dataloader)
        num_saved = self._meta.get('num_batches', num_batches)
        num_done = runner.iter - runner.epoch * num_saved
        if num_done == 0:
            return 0
        if num_done == num_saved:  # nothing is left of the epoch
            return num_batches
        if num_saved != num_batches or not 0 < num_done <= num_batches:
            raise ValueError(
                f'the checkpoint was saved in epoch {runner.epoch + 1} at iteration '
                f'{runner.iter}, with {num_saved} batches an epoch, but the data loader '
                f'has {num_batches}. Resume with the same data set, batch size and '
                'number of processes, or from the checkpoint at the end of an epoch: '
                '--resume work_dirs/.../epoch_N.pth'
            )
        runner.logger.info(
            f'Skipping {num_done} of {num_batches} batches of epoch {runner.epoch + 1}: done before'
        )
        return num_done

    def _number_batches(self, runner: Any, num_done: int) -> None:
        loop = runner.train_loop
        batches = _batch_sampler(loop.dataloader)
        if not isinstance(batches, _TrainBatches):
            mix_in(_TrainBatches, batches)
        batches.num_done, batches.loop = num_done, loop
        batches.seed = (runner.seed, get_rank()) if self.seed_steps else None
        batches.is_loaded_at_once = loop.dataloader.num_workers == 0
        is_placed = isinstance(getattr(loop, 'dataloader_iterator', None), PlacedStream)
        if self.seed_steps and not isinstance(loop, EpochBasedTrainLoop) and not is_placed:
            _check_numbered(loop)


def _batch_sampler(loader: DataLoader) -> Any:
    if not isinstance(loader.batch_sampler, Sampler):
        raise ValueError(
            'ResumeHook expected a data loader with a batch sampler derived from '
            f"torch's BatchSampler, found {type(loader.batch_sampler).__name__}; for example "
            "train_dataloader=dict(batch_sampler=dict(type='BatchSampler', drop_last=False))"
        )
    return loader.batch_sampler


def _check_numbered(loop: Any) -> None:
    """Makes sure that an iteration-based loop draws the batches in the order of their numbers."""
    loader = loop.dataloader
    if loader.num_workers == 0:
        # In older versions it holds an iterator that began before this hook.
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)
    elif not (hasattr(loop.dataloader_iterator, 'skip_iter') and hasattr(loader.sampler, 'skip')):
        raise ValueError(
            f'ResumeHook(seed_steps=True) with num_workers={loader.num_workers} and '
            f'{type(loader.sampler).__name__} cannot tell which iteration a batch is for in an '
            'iteration-based loop; expected num_workers=0, or mmengine >= 0.10.8 and '
            "sampler=dict(type='InfiniteSampler')"
        )


def _count_iterations(runner: Any, num_batches: int, num_left: int) -> None:
    """Counts anew how many iterations there are, of which some may have had another size."""
    loop = runner.train_loop
    num_later = max(loop.max_epochs - loop.epoch - 1, 0) * num_batches
    loop._max_iters = loop.iter + (num_left + num_later if loop.epoch < loop.max_epochs else 0)
    # What the terms' schedules and the log go by; RuntimeInfoHook has told the old number.
    runner.message_hub.update_info('max_iters', loop.max_iters)


def _consequences(runner: Any) -> str:
    """What a changed layout means for the schedules, for the log."""
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = list(itertools.chain(*schedulers.values()))
    going_on = [each for each in schedulers if not each.by_epoch and each.last_step < each.end]
    if not going_on:
        return 'Every image that is left of this pass will be seen once'
    names = ', '.join(sorted({type(each).__name__ for each in going_on}))
    return (
        'Every image that is left of this pass will be seen once. Schedules that count iterations '
        f'go on counting steps of whatever size ({names}), and the training ends at iteration '
        f'{runner.train_loop.max_iters}. Where the schedule has to fit the new number, start a new '
        'run with load_from'
    )


def _leave_out_functions(schedulers: Any) -> None:
    """Removes functions from the states of schedulers: a list, or a list for each optimizer."""
    if isinstance(schedulers, dict):
        schedulers = itertools.chain(*schedulers.values())
    for state in schedulers or ():
        for key in [key for key, value in state.items() if callable(value)]:
            del state[key]


class _TrainBatches(Sampler, InstanceMixin):
    """Mixin for a batch sampler: skips the batches that are done, and seeds the others.

    It derives from the base class of batch samplers, because Python changes the class of
    an instance only to one of the same layout.

    Attributes:
        num_done: Batches to skip in the next pass.
        loop: The training loop, which knows the current iteration.
        seed: What all seeds of this run and rank begin with; None for no seeding.
        is_loaded_at_once: Whether a batch is loaded when it is drawn, in this process.
    """

    prefix = 'Resumable'
    num_done: int
    loop: Any
    seed: tuple[int, int] | None
    is_loaded_at_once: bool

    def __iter__(self) -> Iterator[list[int]]:
        num_done, self.num_done = self.num_done, 0
        number = self.loop.iter
        for batch in itertools.islice(super().__iter__(), num_done, None):
            if self.seed is not None:
                # A loop may draw batches only to skip them, but not in advance.
                now = self.loop.iter if self.is_loaded_at_once else number
                dataset = self.loop.dataloader.dataset
                batch = _SeededBatch(batch, (*self.seed, now, _DATA), dataset)
            yield batch
            number += 1


class _SeededBatch(list):
    """Indices of the samples of a batch; seeds the generators before it is loaded.

    torch iterates over a batch where and when it loads the samples: in this process, or in
    the worker process that the batch was sent to, which has a data set of its own.
    """

    def __init__(self, indices: Sequence[int], key: tuple[int, ...], dataset: Any = None) -> None:
        super().__init__(indices)
        self.key, self.dataset = key, dataset

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        seed_all(*self.key, within=self.dataset if worker is None else worker.dataset)
        return super().__iter__()

    def __reduce__(self):
        return _SeededBatch, (self[:], self.key)  # a slice is a plain list
