"""Why a checkpoint is not loaded: it is damaged, or it would run code."""

import os.path as osp
import pickle
import re
import zipfile
from pathlib import Path


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint was refused, because loading it would run code from the file."""


class DamagedCheckpointError(RuntimeError):
    """A file cannot be read as a checkpoint.

    Attributes:
        fault: What is wrong, without the name of the file.
    """

    def __init__(self, filename: str, reason: str) -> None:
        self.fault = f'the file is damaged, or it is not a checkpoint of PyTorch ({reason})'
        super().__init__(
            f'{filename} was not loaded: {self.fault}. Replace it by an undamaged copy. To '
            'continue a run from the newest checkpoint of its work directory that can be '
            'loaded: --resume, without a path'
        )


def is_complete(path: str | Path) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes it, with the right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many kinds of errors where headers are damaged
        return False


def check_intact(filename: str) -> None:
    """Compares a file with the checksums in it, which torch does not do for tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If it is not what was written.
    """
    if not osp.isfile(filename):
        raise FileNotFoundError(f'there is no checkpoint file {filename}')
    if is_zip(filename) and not is_complete(filename):
        raise DamagedCheckpointError(filename, 'it is not complete, or a checksum in it is wrong')


def refusal(filename: str, error: Exception) -> Exception:
    """What to raise where loading a file failed.

    Args:
        filename: Path or address of the file.
        error: What the loader raised.

    Returns:
        A :class:`DamagedCheckpointError` or an :class:`UntrustedCheckpointError` that names the
        file and the remedy; the error itself if it has nothing to do with the content.
    """
    known = (OSError, UntrustedCheckpointError, DamagedCheckpointError)
    if isinstance(error, known):  # such as a missing file, or a failed download
        return error
    # It was checked before; files of the older format, and downloads, have no checksums.
    is_whole = osp.isfile(filename) and is_zip(filename)
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found or is_whole:
            return _untrusted(filename, found[1] if found else f'something else ({error})')
    if is_whole and 'PytorchStreamReader' not in str(error):  # such as too little memory
        return error
    first_line = str(error).strip().partition('\n')[0]
    return DamagedCheckpointError(filename, f'{type(error).__name__}: {first_line}')


def _untrusted(filename: str, found: str) -> UntrustedCheckpointError:
    return UntrustedCheckpointError(
        f'{filename} was not loaded: it holds {found}, which is neither a weight '
        'nor what MMEngine puts beside them, and loading it would run code from '
        'the file. If you trust its source, pass --trust-checkpoint, or convert '
        'it once: python -c "import torch; torch.save(torch.load('
        f"'{filename}', weights_only=False)['state_dict'], 'weights.pth')\""
    )


def is_zip(filename: str) -> bool:
    """Whether a file has the format that ``torch.save`` writes today, even if it is damaged."""
    with open(filename, 'rb') as file:
        return file.read(2) == b'PK'
