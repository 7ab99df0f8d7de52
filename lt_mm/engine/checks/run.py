"""The whole check of a run."""

from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader

from lt_mm.datasets.source_numbers import pipelines_of
from lt_mm.engine.checks.data import check_data
from lt_mm.engine.checks.inheritance import check_inherited_pipelines
from lt_mm.engine.checks.overrides import check_overrides
from lt_mm.engine.checks.report import Report
from lt_mm.models.heads import ConsistencyOptions
from lt_mm.models.weak_copies import comparing_heads_of


def check_run(cfg: Config, model: nn.Module, loader: DataLoader) -> Report:
    """Looks at whatever can be known of a run before its first step.

    Costs little: a few samples are drawn, and the base configs are read again.

    Args:
        cfg: The config of the run.
        model: The built model, not in a wrapper.
        loader: The built training loader, after
            :func:`~lt_mm.engine.preparation.prepare_training`.
    """
    report = Report()
    heads = list(comparing_heads_of(model).values())
    check_overrides(model, loader, report)
    if heads or pipelines_of(loader.dataset):
        check_inherited_pipelines(cfg, report)
        visibility = [head.lt_options.min_visibility for head in heads]
        threshold = max(visibility, default=ConsistencyOptions.min_visibility)
        check_data(loader.dataset, bool(heads), threshold, report)
    return report
