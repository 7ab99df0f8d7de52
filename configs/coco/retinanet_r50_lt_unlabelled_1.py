# The same with 1 % of the labels.
_base_ = 'retinanet_r50_lt_unlabelled_10.py'

split = 'semi_anns/instances_train2017.1@1'
train_dataloader = dict(
    dataset=dict(
        labelled=dict(ann_file=f'{split}.json'), unlabelled=dict(ann_file=f'{split}-unlabeled.json')
    )
)
