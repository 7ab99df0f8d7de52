"""Training loops."""

from lt_mm.engine.loops.micro_batches import MicroBatchIterTrainLoop, MicroBatchTrainLoop

__all__ = ['MicroBatchIterTrainLoop', 'MicroBatchTrainLoop']
