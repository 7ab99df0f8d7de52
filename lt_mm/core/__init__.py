"""The mathematics of LossTransform: torch, numpy and the standard library only."""
