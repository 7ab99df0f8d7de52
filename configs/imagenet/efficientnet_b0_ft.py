# torchvision's EfficientNet-B0, fine-tuned at the last learning rate of its recipe: the
# plain run.
_base_ = [
    'mmpretrain::_base_/models/efficientnet_b0.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]

# python tools/model_converters/torchvision_to_mm.py efficientnet_b0 \
#     efficientnet_b0_rwightman-7f5810bc.pth checkpoints/efficientnet_b0_tv.pth
load_from = 'checkpoints/efficientnet_b0_tv.pth'

# mmpretrain's defaults are those of the TensorFlow weights: padding 'same', eps 1e-3.
model = dict(backbone=dict(conv_cfg=None, norm_cfg=dict(type='BN', eps=1e-5), drop_path_rate=0.2))

# The weights are timm's, trained for 450 epochs in batches of 2 x 384, 0.048 times 0.97
# every 2.4 epochs, by RMSprop with eps 1e-3 inside the root (torch: outside).
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='RMSprop',
        lr=0.048 * 0.97**187,
        alpha=0.9,
        eps=1e-3**0.5,
        momentum=0.9,
        weight_decay=1e-5,
    )
)
param_scheduler = []
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=768)
