"""Another image takes the place of one that cannot be used, for all its replicas."""

from collections.abc import Callable
from typing import Any

from lt_mm.datasets.reporting import Tally, warn
from lt_mm.datasets.transforms.image_loading import BadImageError
from lt_mm.datasets.transforms.samples import as_stand_in, path_of, source_key

# So many unusable images in a row are not the fault of the images.
_IN_A_ROW = 20
# A replaced source is remembered for so many samples of other sources.
_REMEMBER_FOR = 16
_POLICIES = ('skip', 'raise')


class SkippedImages:
    """Counts and logs the images that are left out, and stops the run at too many.

    Args:
        on_bad_image: 'skip' or 'raise', for images that cannot be read.
        on_missing_image: 'skip' or 'raise', for files that do not exist.
        limit: So many different images may be left out; None for any number.

    Raises:
        ValueError: If an argument is none of these.
    """

    def __init__(self, on_bad_image: str, on_missing_image: str, limit: int | None) -> None:
        for name, value in (('on_bad_image', on_bad_image), ('on_missing_image', on_missing_image)):
            if value not in _POLICIES:
                raise ValueError(f'{name} is {value!r}; expected one of {_POLICIES}')
        if limit is not None and not (isinstance(limit, int) and limit >= 0):
            raise ValueError(
                f'max_skipped is {limit!r}; expected a number of images, '
                '0 or more, or None for any number'
            )
        self._policies = dict(on_bad_image=on_bad_image, on_missing_image=on_missing_image)
        self._limit = limit
        self._tally = Tally(2**16 if limit is None else limit + 1)
        self._in_a_row = 0

    def succeed(self) -> None:
        """Takes note of an image that could be used."""
        self._in_a_row = 0

    def skip(self, source: int, error: Exception) -> None:
        """Counts and logs an image.

        Args:
            source: The image's ``sample_idx``.
            error: What is wrong; a FileNotFoundError where the file does not exist.

        Raises:
            BadImageError: If images are not to be skipped, or too many were.
            FileNotFoundError: Likewise, for a missing file.
        """
        self._raise_unless_allowed(error)
        is_new = self._tally.add(source)
        self._in_a_row += 1
        count = len(self._tally)
        if self._limit is not None and count > self._limit:
            raise BadImageError(
                f'{count} images could not be used, more than max_skipped='
                f'{self._limit}; the last one: {error}. Repair the files, or allow more: '
                f"dict(type='lt_mm.InvertiblePipeline', max_skipped={10 * count}, ...), "
                'None for any number'
            ) from error
        if self._in_a_row >= _IN_A_ROW:
            raise BadImageError(
                f'{self._in_a_row} images in a row could not be used; the last one: {error}. Check '
                'data_root, data_prefix and the transforms of train_dataloader.dataset'
            ) from error
        if is_new:
            warn(
                f'{error}; left out, and another image takes the place of all its '
                f'replicas (images left out so far: {count})'
            )

    def _raise_unless_allowed(self, error: Exception) -> None:
        missing = isinstance(error, FileNotFoundError)
        option = 'on_missing_image' if missing else 'on_bad_image'
        if self._policies[option] == 'skip':
            return
        hint = (
            'check data_root and data_prefix of train_dataloader.dataset, or leave such images'
            if missing
            else 'repair the file, or leave it'
        )
        raise type(error)(
            f"{error}; {hint} out: dict(type='lt_mm.InvertiblePipeline', {option}='skip', ...)"
        ) from error


class StandIns:
    """Makes replicas, of the last good source where a source cannot be used.

    Args:
        skipped: Is told of every source that cannot be read.
        attempts: How often a replica is tried before it counts as rejected; for the log.
    """

    def __init__(self, skipped: SkippedImages, attempts: int) -> None:
        self._skipped = skipped
        self._attempts = attempts
        self._has_rejected = False
        # As the data set gave them: the last source that was good, and the one that
        # takes the place of the last that was not.
        self._last_good: dict | None = None
        self._stand_in: dict = {}
        self._replaced_key: tuple | None = None
        self._since_replaced = 0

    def replica(self, results: dict, make: Callable[[dict], Any]) -> Any:
        """Makes a replica of a source, or of its stand-in.

        Args:
            results: The source as the data set gives it, with its Origin.
            make: Makes a replica; gives None where the transforms reject the source.

        Returns:
            What ``make`` gives; None where the source cannot be used and no good one
            came before it.

        Raises:
            BadImageError: See :class:`SkippedImages`.
            FileNotFoundError: Likewise.
        """
        if self._is_replaced(results):
            return self._made(as_stand_in(self._stand_in), make)
        output = self._made(results, make)
        if output is not None:
            self._last_good = results
        elif self._last_good is not None:
            self._stand_in, self._replaced_key = self._last_good, source_key(results)
            return self._made(as_stand_in(self._stand_in), make)
        return output

    def _made(self, results: dict, make: Callable[[dict], Any]) -> Any:
        """What ``make`` gives; None where the source cannot be used."""
        try:
            output = make(results)
        except (BadImageError, FileNotFoundError, MemoryError) as error:
            if isinstance(error, MemoryError):
                error = BadImageError(f'{path_of(results)} takes more memory than there is')
            self._skipped.skip(int(results['sample_idx']), error)
            return None
        self._skipped.succeed()
        if output is None:
            self._log_rejection(results)
        return output

    def _is_replaced(self, results: dict) -> bool:
        """Whether the sample is a further replica of the source that was left out."""
        if source_key(results) == self._replaced_key:
            self._since_replaced = 0
            return True
        # Images to mix with may come in between. In the next epoch it is tried again.
        self._since_replaced += 1
        if self._since_replaced > _REMEMBER_FOR:
            self._replaced_key = None
        return False

    def _log_rejection(self, results: dict) -> None:
        if not self._has_rejected:
            self._has_rejected = True
            warn(
                f'the transforms reject {path_of(results)} in {self._attempts} attempts, so '
                'another image takes the place of its replicas; further rejections are not logged'
            )
