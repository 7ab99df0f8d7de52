# cifar10.py with AugMix after the affine maps: an image is mixed with its own distorted version.
_base_ = 'cifar10.py'

# One chain of operations instead of three, which takes half the time. Those that resemble the
# corruptions that are measured are left out, as in the paper of AugMix (all_ops=False).
augmix = [
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/AugMix', mixture_width=1, all_ops=False),
    dict(type='PILToNumpy', to_bgr=True),
]
train_pipeline = [*_base_.train_pipeline[:-1], *augmix, _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# Steadiness is measured on the copies of cifar10.py.
replica_pipeline = _base_.train_pipeline
