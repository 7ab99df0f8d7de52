# The stock Mask R-CNN R50-FPN, of which the RoI head alone trains: backbone, FPN and RPN
# keep the weights that load_from gives them.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='lt_mm.Frozen', module=_base_.model.backbone),
    neck=dict(_delete_=True, type='lt_mm.Frozen', module=_base_.model.neck),
    rpn_head=dict(_delete_=True, type='lt_mm.Frozen', module=_base_.model.rpn_head),
)
# load_from brings the backbone too.
model['backbone']['module']['init_cfg'] = None
