# RetinaNet R50-FPN on a tenth of COCO with labels, and on the rest without: MMDetection's split.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

percent, fold = 10, 1
pipeline = [
    dict(type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline)
]
stock = dict(_base_.train_dataloader.dataset, pipeline=pipeline)
split = f'semi_anns/instances_train2017.{fold}@{percent}'

train_dataloader = dict(
    batch_size=4,
    sampler=dict(
        _delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, unlabelled_share=0.5
    ),
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type='lt_mm.LabelledAndUnlabelled',
        labelled=dict(stock, ann_file=f'{split}.json'),
        unlabelled=dict(stock, ann_file=f'{split}-unlabeled.json', filter_cfg=None),
    ),
)

options = dict(
    score_threshold=0.5, rho=dict(type='linear', start=0.0, end=1.0, begin=0.1, finish=0.4)
)
model = dict(
    bbox_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.bbox_head, **options
    )
)
