# Faster R-CNN with the term on the proposals of the RPN as well.
_base_ = 'faster_rcnn_r50_lt_v1.py'

model = dict(
    rpn_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.rpn_head, rho=0.1
    )
)
