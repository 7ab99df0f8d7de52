"""What the memory of a head costs: its size for large data sets, and its part of a step."""

from typing import Any

import torch
from torch import Tensor

from lt_mm.core.memory import Memory
from lt_mm.core.memory_codes import BoxCode, ClassCode, Code
from tools.benchmarks.steps import classifier, pictures, stock_step
from tools.benchmarks.timing import Row, Timer

IMAGENET, COCO = 1_281_167, 860_001
SIZE_TARGET, SHARE_TARGET, STEP_TARGET = '<= 150', '<= 0.01', '<= 1.02'


def measure(timer: Timer, quick: bool) -> list[Row]:
    """Rows of the table."""
    part, count = (100 if quick else 1), (4 if quick else 32)
    cases: dict[str, tuple[int, dict[str, Code]]] = {
        'ImageNet-1K, 1000 classes': (IMAGENET // part, {'cls': ClassCode(1000)}),
        'COCO, 80 classes and boxes': (
            COCO // part,
            {'cls': ClassCode(80, sigmoid=True), 'bbox': BoxCode()},
        ),
    }
    data = pictures(count)(1)
    stock, remembering = (
        classifier(True, timer.device, memory=memory) if memory else classifier(False, timer.device)
        for memory in (None, dict(momentum=0.7))
    )
    step = stock_step(stock, data)
    rows = []
    for name, (entries, codes) in cases.items():
        memory = _filled(codes, entries, timer.device)
        rows.append(
            Row(f'memory of {name}', '', memory.num_bytes / 1e6, 'MB', SIZE_TARGET, f'{entries}')
        )
        share = timer.compare(_visit(memory, codes, entries, count, timer.device), step)
        rows.append(
            Row(
                f'look-up and update of {count} of {name}',
                f'step of ResNet-50, batch of {count}',
                share.ratio,
                'x time',
                SHARE_TARGET,
                f'{1e3 * share.a:.1f} ms',
            )
        )
    ratio = timer.compare(stock_step(remembering, data), step)
    rows.append(
        Row(
            'step of ResNet-50 with a memory',
            'stock step',
            ratio.ratio,
            'x time',
            STEP_TARGET,
            f'batch of {count}, {ratio.b:.2f} s stock',
        )
    )
    return rows


def _filled(codes: dict[str, Code], entries: int, device: torch.device) -> Memory:
    """A memory that knows sources 0 to ``entries``, with one instance each."""
    memory = Memory(codes, device=device)
    state = {
        name: each.new_zeros(entries, *each.shape[1:]) for name, each in memory.state_dict().items()
    }
    sources = torch.arange(entries, device=device)
    state['keys'] = memory.visit(_ids(sources), torch.ones_like(sources, dtype=torch.bool), 0).keys
    memory.load_state_dict(state)
    return memory


def _visit(
    memory: Memory, codes: dict[str, Code], entries: int, count: int, device: torch.device
) -> Any:
    """One step's look-up and update of so many instances."""
    values: dict[str, Tensor] = {
        name: torch.rand(count, *code.shape, device=device) for name, code in codes.items()
    }
    keep = torch.ones(count, dtype=torch.bool, device=device)

    def visit() -> None:
        ids = _ids(torch.randint(entries, (count,), device=device))
        found = memory.visit(ids, keep, 1)
        for name, each in values.items():
            memory.target(found, name, each)
        memory.update(found, **values)
        if device.type == 'cuda':
            torch.cuda.synchronize()

    return visit


def _ids(sources: Tensor) -> Tensor:
    return torch.stack([sources, torch.zeros_like(sources)], dim=1)
