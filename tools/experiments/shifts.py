"""How much boxes change where all that moves is the image, by whole pixels of the network's input.

A detector whose strides divide the shift sees the same image again, but for its border. So this
tells what part of its jitter is due to how the image lies in the cells of its feature maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import load_checkpoint
from torch import Tensor
from torch.nn.functional import pad

from lt_mm.apis.replica_configs import validation_config
from lt_mm.core.measures.flicker import BoxFlicker, Detections, box_flicker
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import build_runner


def measure_shifts(
    config: str,
    checkpoint: str,
    pixels: Sequence[int],
    max_images: int,
    score_threshold: float,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
) -> dict[str, float | None]:
    """Measures the jitter between validation images and the same ones, shifted.

    Args:
        config: Config file of a detector.
        checkpoint: Checkpoint file.
        pixels: Shifts to the left and upwards, pixels after the resize of the validation.
        max_images: So many validation images at most, evenly spaced.
        score_threshold: Smallest score of a detection.
        cfg_options: Settings of the config to override.
        work_dir: Folder of the log.

    Returns:
        ``center_jitter_1``, ``size_jitter_1``, ``score_swing_1`` and ``blinking_1`` for a shift by
        1 pixel, and so on, as :class:`~lt_mm.core.measures.flicker.BoxFlicker` says; None where
        nothing was found.
    """
    cfg = validation_config(config, checkpoint, work_dir, cfg_options)
    with checkpoint_loading():
        runner = build_runner(cfg)
        # Not by the runner, whose hooks, such as EMAHook, expect that training has begun.
        load_checkpoint(runner.model, checkpoint, map_location='cpu')
    runner.model.eval()
    dataset = runner.build_dataloader(cfg.val_dataloader).dataset
    step = -(-len(dataset) // max_images)
    total = {shift: BoxFlicker() for shift in pixels}
    for index in range(0, len(dataset), step):
        sample = dataset[index]
        first, *others = [
            _detections(runner.model, sample, shift, max(pixels), score_threshold)
            for shift in (0, *pixels)
        ]
        for shift, other in zip(pixels, others):
            total[shift] = total[shift].plus(box_flicker([first, other]))
    names = 'center_jitter', 'size_jitter', 'score_swing', 'blinking'
    rates = {shift: sums.rates() for shift, sums in total.items()}
    return {f'{name}_{shift}': rates[shift][name] for name in names for shift in pixels}


def shifted(image: Tensor, shift: int, room: int) -> Tensor:
    """The image (C, H, W), mirrored at its border by ``room`` pixels on either side, shifted.

    All shifts up to ``room`` have one size, (C, H + room, W + room), and show the whole image.
    """
    wide = pad(image[None].float(), [room] * 4, mode='reflect')[0].to(image.dtype)
    height, width = image.shape[1] + room, image.shape[2] + room
    return wide[:, shift : shift + height, shift : shift + width]


@torch.no_grad()
def _detections(
    model: Any, sample: dict[str, Any], shift: int, room: int, score_threshold: float
) -> Detections:
    """What is found in the shifted image, in pixels of the mirrored one."""
    inputs = shifted(sample['inputs'], shift, room)
    shape = tuple(inputs.shape[1:])
    facts = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    data_sample = sample['data_samples'].new(metainfo=facts)
    (found,) = model.test_step(dict(inputs=[inputs], data_samples=[data_sample]))
    predicted = found.pred_instances
    predicted = predicted[predicted.scores >= score_threshold]
    height, width = sample['inputs'].shape[1:]
    window = torch.tensor([room, room, room + width, room + height]).double()
    return Detections(predicted.bboxes + shift, predicted.labels, predicted.scores, window)
