# torchvision's ViT-B/16, fine-tuned at the last learning rate of its recipe: the plain
# run.
_base_ = [
    'mmpretrain::_base_/models/vit-base-p16.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]

# python tools/model_converters/torchvision_to_mm.py vit_b_16 vit_b_16-c867db91.pth \
#     checkpoints/vit_b_16_tv.pth
load_from = 'checkpoints/vit_b_16_tv.pth'

model = dict(
    backbone=dict(drop_rate=0.0, init_cfg=None),
    head=dict(loss=dict(label_smooth_val=0.11, mode='original')),
)

# The recipe: 300 epochs in batches of 64 x 64, after 30 of warm-up a cosine from 0.003
# to 0; its last epoch has 1.0e-7. Its mixup and CutMix would mix replicas with different
# images, and are left out of both runs.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1.0e-7, weight_decay=0.3),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = []
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=4096)
