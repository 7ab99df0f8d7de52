"""What ``tools/*.py`` call.

- ``browse``: pictures of replicas of the training data, and what was lost in them.
- ``check_config``: whether a config trains what it means to.
- ``consistency``: how alike predictions for augmented copies of validation images are.
- ``draw_replicas``: a picture of predictions for replicas, restored to their source.
- ``replica_configs``: the configs that these three build their data from.
- ``stock_evaluation``: the stock evaluation that stands beside ``consistency``.
- ``term_gradients``: the gradients of the terms beside those of the stock losses.
- ``torchvision_weights``: torchvision's weights in stock models, by the names that
  ``torchvision_layers`` lists.
- ``train``: training and testing, with the habits of the stock tools.
- ``wrapping``: child configs that make a stock config a LossTransform run.
- ``zoo``: which configs of the installed frameworks can be wrapped.

Nothing is imported here: a tool imports the module that it needs.
"""
