# RTMDet-tiny on a tenth of COCO with labels, the rest without; no Mosaic and MixUp, see the docs.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

wrap = dict(type='lt_mm.InvertiblePipeline')
pipeline = [dict(wrap, transforms=_base_.train_pipeline_stage2)]
# An unlabelled image has no box that a crop could keep.
unlabelled = [
    dict(step, allow_negative_crop=True) if step['type'] == 'RandomCrop' else step
    for step in _base_.train_pipeline_stage2
]
stock = dict(_base_.train_dataloader.dataset, pipeline=pipeline)
split = 'semi_anns/instances_train2017.1@10'

train_dataloader = dict(
    batch_size=64,  # 32 with labels, as in the stock config
    sampler=dict(
        _delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, unlabelled_share=0.5
    ),
    dataset=dict(
        _delete_=True,
        type='lt_mm.LabelledAndUnlabelled',
        labelled=dict(stock, ann_file=f'{split}.json'),
        unlabelled=dict(
            stock,
            ann_file=f'{split}-unlabeled.json',
            filter_cfg=None,
            pipeline=[dict(wrap, transforms=unlabelled)],
        ),
    ),
)
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != 'PipelineSwitchHook']

ramp = dict(type='linear', start=0.0, end=1.0, begin=0.1, finish=0.4)
options = dict(head=_base_.model.bbox_head, score_threshold=0.5, rho=ramp)
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    bbox_head=dict(_delete_=True, type='lt_mm.LossTransformHead', **options),
)
