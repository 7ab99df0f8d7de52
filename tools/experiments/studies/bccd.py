"""The study of fine-tuning: YOLOX-Nano from COCO's weights on a quarter of BCCD.

`plain` is the stock loss, `repeated` the same on repeated images (rho = 0). The others have
the terms, with one way of pairing each: `nearest` is the prediction of each replica that is
nearest to the annotation, `all` is every positive, `means` is the mean of each replica. All
see equally many images. docs/studies/bccd/plan.md says how they are compared.
"""

from typing import Any

plain = 'configs/studies/bccd.py'
lt = 'configs/studies/bccd_lt.py'

metric = 'coco/bbox_mAP'
metric_name = 'box AP'
scale = 100
seeds = [0, 1, 2, 3, 4]
paired = True
# Measured of each trained model: 4 augmented copies of the validation images.
consistency = dict(num_replicas=4, score_threshold=0.3)
# And on frames of a slow pan and zoom, and on corrupted images.
steadiness = dict(num_frames=16, max_images=40, score_threshold=0.3)
kinds = ('gaussian_noise', 'defocus_blur', 'fog', 'contrast', 'jpeg_compression')
corruptions = dict(kinds=kinds, severities=(3,))
measured = dict(
    matched_share='Matched',
    mean_iou='IoU of matched',
    score_jitter='Difference of scores',
    blinking='Blinking',
    center_jitter='Centre jitter',
    size_jitter='Size jitter',
    score_swing='Score swing',
    mPC='mPC',
)

rho = 'model.bbox_head.rho'
rho_bbox = 'model.bbox_head.rho_bbox'
pairing = 'model.bbox_head.pairing'
detach = 'model.bbox_head.detach_mean'
# The study is older than the objectness term.
before = {'model.bbox_head.rho_obj': 0.0}

pairings = dict(all='gt_all', nearest='gt', means='gt_mean')
terms: dict[str, dict[str, Any]] = {'': {}, '-no-box': {rho_bbox: 0.0}, '-detached': {detach: True}}
runs = {
    'plain': (plain, {}),
    'repeated': (lt, {rho: 0.0}),
    **{
        f'{name}{ending}': (lt, {pairing: value, **before, **settings})
        for ending, settings in terms.items()
        for name, value in pairings.items()
    },
}
sections = {
    'Equal images seen': [
        ('plain', None),
        ('repeated', 'plain'),
        *[(name, 'plain') for name in pairings],
    ],
    'What the terms add to repetition': [(name, 'repeated') for name in pairings],
    'What was called gt before, and the others': [('nearest', 'all'), ('means', 'all')],
    'Without the box term, and with a detached mean': [
        (f'{name}{ending}', name) for name in pairings for ending in terms if ending
    ]
    + [(f'{name}{ending}', 'plain') for name in pairings for ending in terms if ending],
}
figures = dict(curves=dict(kind='curves', runs=['plain', 'repeated', *pairings]))
