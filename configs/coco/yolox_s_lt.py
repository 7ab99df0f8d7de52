# YOLOX-s. The instances of a mosaic carry a matrix each, so they pair one by one. RandomAffine
# rotates, so that boxes are compared only once YOLOXModeSwitchHook has taken it out.
_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, mode='v1'),
    dataset=dict(
        dataset=dict(
            pipeline=[
                dict(
                    type='lt_mm.InvertiblePipeline',
                    transforms=_base_.train_dataloader.dataset.dataset.pipeline,
                )
            ]
        ),
        # YOLOXModeSwitchHook takes transforms out of the wrapped list by their names.
        pipeline=[
            dict(
                type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline
            )
        ],
    ),
)

model = dict(
    # Its BatchSyncRandomResize moves the record too.
    data_preprocessor=dict(type='lt_mm.RecordingDetDataPreprocessor'),
    bbox_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.bbox_head, rho=1.0
    ),
)
