# EfficientNet-B0, 30 epochs of SGD at a constant learning rate: the plain run.
_base_ = 'efficientnet_b0_ft.py'

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.001, momentum=0.9, weight_decay=1e-5)
)
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=128)
