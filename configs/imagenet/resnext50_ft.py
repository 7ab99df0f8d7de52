# torchvision's ResNeXt-50 32x4d, fine-tuned at the last learning rate of its recipe: the
# plain run.
_base_ = 'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py'

# python tools/model_converters/torchvision_to_mm.py resnext50_32x4d \
#     resnext50_32x4d-7cdf4587.pth checkpoints/resnext50_32x4d_tv.pth
load_from = 'checkpoints/resnext50_32x4d_tv.pth'

# The recipe: 100 epochs in batches of 8 x 32, 0.1 divided by 10 every 30 epochs.
optim_wrapper = dict(optimizer=dict(lr=0.0001))
param_scheduler = []
train_cfg = dict(max_epochs=20)
