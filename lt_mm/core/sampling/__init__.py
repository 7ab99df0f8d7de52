"""Which sources are shown when: the order under repeated augmentation, and what is left of it."""
