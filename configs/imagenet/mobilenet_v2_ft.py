# torchvision's MobileNet-V2, fine-tuned at the last learning rate of its recipe: the
# plain run.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

# python tools/model_converters/torchvision_to_mm.py mobilenet_v2 \
#     mobilenet_v2-b0353104.pth checkpoints/mobilenet_v2_tv.pth
load_from = 'checkpoints/mobilenet_v2_tv.pth'

# The recipe: 300 epochs in batches of 8 x 32, 0.045 times 0.98 after every epoch.
optim_wrapper = dict(optimizer=dict(lr=0.045 * 0.98**299, weight_decay=4e-5))
param_scheduler = []
train_cfg = dict(max_epochs=20)
