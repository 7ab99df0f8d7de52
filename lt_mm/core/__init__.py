"""The mathematics of LossTransform: torch, numpy and the standard library only.

===============  ==================================================================
consistency      the term: KL of the mean prediction to each
pairing          which predictions are the same instance
geometry         matrices, and the boxes, points and masks that they move
provenance       where boxes come from, and the matrices that brought them here
replicas         the order of samples under repeated augmentation
mixing           mixup, CutMix and Cutout for groups of replicas
schedules        the weight of the term over training
agreement        how alike the predictions for the replicas of a source are
gradients        comparison of the gradients of two losses
annotations      checks of annotated boxes and masks
seeds            seeds of the random generators
===============  ==================================================================
"""
