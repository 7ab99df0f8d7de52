"""How much of the training data a run has used, in a checkpoint and out of it."""

import functools
from typing import Any, NoReturn

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from lt_mm.core.sampling.remaining import Rest, moved_position, translate
from lt_mm.engine.continued_samplers import (
    ContinuedSampler,
    begin_at,
    fresh_copy,
    go_on_with,
    is_endless,
    is_of_epochs,
    next_source,
    rest_after,
)
from lt_mm.engine.source_keys import source_keys
from lt_mm.models.mixins import stock_class

_OPTIONS = ('mode', 'shuffle', 'round_up', 'start_epoch')


class DataPosition:
    """Counts the batches of a training, and places a resumed one behind those it had.

    A *layout* is everything that says which samples are in which batch of which rank. As long
    as it stays the same, a position is a number of batches. When it changes, the sources that
    are left of the pass are dealt out to the new layout.

    Args:
        loop: The training loop.

    Attributes:
        num_done: Batches of the first epoch, or of the stream, that are to be left out.
        is_placed: Whether the stream of an iteration-based loop begins where it has to.
    """

    def __init__(self, loop: Any) -> None:
        self.num_done, self.is_placed = 0, False
        self._loader: DataLoader = loop.dataloader
        self._sampler = sampler_of(self._loader)
        self._by_epoch = isinstance(loop, EpochBasedTrainLoop)
        self._epoch, self._first_iter, self._first_source = loop.epoch, loop.iter, 0
        self._batches = None
        if self._by_epoch and is_of_epochs(self._sampler):
            self._batches = fresh_copy(self._loader.batch_sampler)

    def begin_epoch(self, epoch: int, iteration: int) -> None:
        """Notes where an epoch begins, unless it is the one that was resumed."""
        if epoch != self._epoch:
            self._epoch, self._first_iter = epoch, iteration

    def leave_out(self, num_batches: int) -> None:
        """Counts batches of the first epoch as done, whose position was not saved."""
        self._first_iter -= num_batches

    # ------------------------------------------------------------------ into a checkpoint

    def state(self, epoch: int, iteration: int) -> dict[str, Any]:
        """What a checkpoint has to hold.

        Args:
            epoch: Epochs that are done.
            iteration: Iterations that are done.
        """
        state = dict(epoch=epoch, layout=self._layout())
        if not self._by_epoch:
            return dict(state, **self._stream_state(iteration - self._first_iter))
        num_done = iteration - self._first_iter if epoch == self._epoch else 0
        start = rest = None
        if self._batches is not None:
            if isinstance(self._sampler, ContinuedSampler) and self._sampler.goes_on():
                start = self._rest_state(self._sampler.rest)
            rest = rest_after(self._batches, self._sampler, epoch, num_done)
        return dict(
            state,
            num_batches=num_done,
            is_complete=num_done == len(self._loader),
            start=start,
            rest=self._rest_state(rest),
        )

    def _stream_state(self, num_batches: int) -> dict[str, Any]:
        state: dict[str, Any] = dict(num_batches=num_batches, first_source=self._first_source)
        if is_endless(self._sampler):
            num_samples = num_batches * self._loader.batch_sampler.batch_size  # type: ignore[union-attr]  # a loader without one cannot train
            state['next_source'] = next_source(self._sampler, self._first_source, num_samples)
        return state

    def _rest_state(self, rest: Rest | None) -> dict[str, Any] | None:
        if rest is None:
            return None
        keys = self._keys
        return dict(
            epoch=rest.epoch,
            num_now=rest.num_now,
            order=torch.from_numpy(rest.order.astype(np.int32)),
            keys=None if keys is None else torch.from_numpy(keys[rest.order]),
        )

    @functools.cached_property
    def _keys(self) -> np.ndarray | None:
        return source_keys(self._loader.dataset)

    def _layout(self) -> dict[str, Any]:
        sampler, batches = self._sampler, self._loader.batch_sampler
        layout = dict(
            world_size=get_world_size(),
            batch_size=getattr(batches, 'batch_size', None),
            drop_last=getattr(batches, 'drop_last', None),
            num_images=len(self._loader.dataset),  # type: ignore[arg-type]  # it has a length
            batch_sampler=stock_class(batches).__name__.removeprefix('Resumable'),
            sampler=stock_class(sampler).__name__,
        )
        layout.update((key, getattr(sampler, key, None)) for key in _OPTIONS)
        groups = getattr(sampler, 'layout', None)
        for key in ('num_repeats', 'placement', 'repeat_fraction'):
            layout[key] = getattr(groups, key, None)
        return layout

    # ------------------------------------------------------------------ out of a checkpoint

    def restore(self, state: dict[str, Any]) -> str | None:
        """Goes on from a checkpoint.

        Returns:
            What has changed since, for the log; None if nothing has.

        Raises:
            ValueError: If the sources that are left are not known.
        """
        changes = [
            f'{key} from {state["layout"].get(key)} to {value}'
            for key, value in self._layout().items()
            if value != state['layout'].get(key)
        ]
        if self._by_epoch:
            self._restore_epoch(state, changes)
        else:
            self._restore_stream(state, changes)
        return ', '.join(changes) or None

    def _restore_epoch(self, state: dict[str, Any], changes: list[str]) -> None:
        self._epoch = state['epoch']
        rest = state['rest'] if changes else state['start']
        if not changes:
            self.num_done = state['num_batches']
        elif rest is None or self._batches is None:
            if state['is_complete']:
                self.num_done = len(self._loader)
            elif state['num_batches']:
                self._refuse(state, changes, 'a DefaultSampler or a GroupedRepeatAugSampler')
        self._first_iter -= self.num_done
        if rest is not None and self._batches is not None:
            go_on_with(self._sampler, self._present(rest, state, changes))
        if hasattr(self._sampler, 'set_epoch'):
            self._sampler.set_epoch(self._epoch)

    def _present(self, saved: dict[str, Any], state: dict[str, Any], changes: list[str]) -> Rest:
        """What is left, in the numbers that the images have now."""
        rest = Rest(saved['epoch'], saved['order'].numpy().astype(np.int64), saved['num_now'])
        if state['layout']['num_images'] == len(self._loader.dataset):  # type: ignore[arg-type]  # it has a length
            return rest
        keys = self._keys
        if saved['keys'] is None or keys is None:
            self._refuse(state, changes, 'a data set whose images have paths or ids, all different')
        places = {key: place for place, key in enumerate(keys.tolist())}
        found = [places.get(key, -1) for key in saved['keys'].tolist()]
        return translate(rest, np.array(found, dtype=np.int64))

    def _restore_stream(self, state: dict[str, Any], changes: list[str]) -> None:
        known = is_endless(self._sampler) and 'next_source' in state
        if changes and not known:
            self._refuse(state, changes, "sampler=dict(type='InfiniteSampler')")
        if not known:
            self._first_iter -= state['num_batches']
            return  # the loop itself leaves out what was done
        self._first_source = state['first_source']
        if changes:
            before, now = state['layout']['num_images'], len(self._loader.dataset)  # type: ignore[arg-type]  # it has a length
            self._first_source = moved_position(state['next_source'], before, now)
        else:
            self.num_done = state['num_batches']
            self._first_iter -= self.num_done
        if self._first_source:
            begin_at(self._sampler, self._first_source)
        self.is_placed = True

    def _refuse(self, state: dict[str, Any], changes: list[str], expected: str) -> NoReturn:
        raise ValueError(
            f'the checkpoint was saved after {state["num_batches"]} batches of epoch '
            f'{state["epoch"] + 1}. Since then these changed: {", ".join(changes)}. Which images '
            f'are left is not known with a {stock_class(self._sampler).__name__}; expected '
            f'{expected}. Resume with the same data set, batch size and number of processes, '
            'or from the checkpoint at the end of an epoch: --resume work_dirs/.../epoch_N.pth'
        )


class PlacedStream:
    """Batches of an endless sampler that begins where it has to.

    Takes the place of the ``dataloader_iterator`` of an iteration-based loop, which leaves out
    as many batches of the present size as there were iterations. Here, that does nothing.

    Args:
        loader: The data loader.
        num_asked: How many batches the loop will ask for only to leave them out, unless it
            calls :meth:`skip_iter` instead.
    """

    def __init__(self, loader: DataLoader, num_asked: int) -> None:
        self._loader, self._num_asked = loader, num_asked
        self._iterator: Any = None

    def __next__(self) -> Any:
        if self._num_asked > 0:
            self._num_asked -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """What newer loops call."""
        self._num_asked = 0


def sampler_of(loader: DataLoader) -> Any:
    """The sampler of single samples in a loader."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
