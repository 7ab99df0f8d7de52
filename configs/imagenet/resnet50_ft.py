# torchvision's ResNet-50, fine-tuned at the last learning rate of its recipe: the plain
# run.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# python tools/model_converters/torchvision_to_mm.py resnet50 resnet50-0676ba61.pth \
#     checkpoints/resnet50_tv.pth
load_from = 'checkpoints/resnet50_tv.pth'

# The recipe: 90 epochs in batches of 8 x 32, 0.1 divided by 10 every 30 epochs.
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = []
train_cfg = dict(max_epochs=20)
