"""What the documentation shows works as it says, and what it names exists."""

import pathlib
import pkgutil
import re

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope

from lt_mm import registry
from lt_mm.structures.errors import LostRecordError
from tests.paths import CONFIGS, DOCS, REPOSITORY

README = REPOSITORY / 'README.md'
# Written by people; docs/studies and docs/transforms.md are generated.
PAGES = [
    README,
    REPOSITORY / 'CONTRIBUTING.md',
    REPOSITORY / 'CHANGELOG.md',
    CONFIGS / 'README.md',
    *sorted(DOCS.glob('*.md')),
]
# The change log names what is gone.
PRESENT = [page for page in PAGES if page.name != 'CHANGELOG.md']
ROOMS = [path.name for path in (REPOSITORY / 'lt_mm').iterdir() if path.is_dir()]


def code_of(path: pathlib.Path) -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', path.read_text(), flags=re.MULTILINE | re.DOTALL)


def prose_of(path: pathlib.Path) -> str:
    return re.sub(r'^```.*?^```', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: pathlib.Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', prose_of(path), flags=re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]


def relative(path: pathlib.Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


# -- links and names -----------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=relative)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', prose_of(page)):
        name, _, anchor = link.partition('#')
        target = page.parent / name if name else page
        if re.match(r'\w+:', link):
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    'text, expected',
    [
        ('# A title\n## `code`, and more (here)', ['a-title', 'code-and-more-here']),
        ('# One\n```bash\n# no heading\n```\n', ['one']),
    ],
)
def test_the_reader_of_anchors(tmp_path, text, expected):
    (tmp_path / 'page.md').write_text(text)
    assert anchors_of(tmp_path / 'page.md') == expected


@pytest.mark.parametrize('page', PRESENT, ids=relative)
def test_files_that_a_page_names_exist(page):
    """`tests/...` and its like from the root, `core/...` and its like from lt_mm."""
    roots = dict.fromkeys(['configs', 'docs', 'lt_mm', 'tests', 'tools', '.ci'], REPOSITORY)
    roots |= dict.fromkeys(ROOMS, REPOSITORY / 'lt_mm')
    named = re.findall(r'(?<![\w/:.])([\w.]+(?:/[\w.-]+)*/[\w.-]*)', page.read_text())
    missing = [
        name
        for name in named
        if name.split('/')[0] in roots and not (roots[name.split('/')[0]] / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize('page', PRESENT, ids=relative)
def test_names_of_lt_mm_exist(page):
    """As modules and what is in them, or in a registry."""
    registries = [value for value in vars(registry).values() if isinstance(value, Registry)]
    registered = {name for each in registries for name in each.module_dict}
    unknown = [
        name
        for name in re.findall(r'\blt_mm((?:\.\w+)+)', page.read_text())
        if name[1:] not in registered and not _can_be_imported(f'lt_mm{name}')
    ]
    assert unknown == []


def _can_be_imported(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


# -- code ----------------------------------------------------------------------------


@pytest.fixture
def guide():
    """What the code of the guide on transforms defines."""
    init_default_scope('mmdet')
    names = {}
    for code in code_of(DOCS / 'invertible_transforms.md'):
        exec(code, names)
    yield names
    TRANSFORMS._module_dict.pop('RandomStretch')


def sample(boxes):
    return dict(
        sample_idx=5,
        img=np.zeros((60, 80, 3), np.uint8),
        img_shape=(60, 80),
        ori_shape=(60, 80),
        height=60,
        width=80,
        img_path='made.png',
        img_id=5,
        instances=[dict(bbox=box, bbox_label=0, ignore_flag=0) for box in boxes],
    )


def test_the_transform_of_the_guide_is_recorded(guide):
    boxes = [[3.5, 4, 20, 30], [40, 10, 79, 59.25]]
    np.random.seed(0)
    for most in (1.5, 4.0):
        error = guide['largest_error'](dict(type='RandomStretch', most=most), sample(boxes))
        assert error < 1e-3


def test_what_the_guide_says_loses_the_record(guide):

    class Shifts(guide['BaseTransform']):
        def transform(self, results):
            results['gt_bboxes'].tensor[:, 0] += 4
            return results

    with pytest.raises(LostRecordError, match='Shifts'):
        guide['largest_error'](Shifts(), sample([[3, 4, 20, 30]]))


def test_the_overrides_of_the_guide_make_a_config(tmp_path):
    """All three in one file, on a stock config."""
    overrides = '\n'.join(code_of(DOCS / 'wrap_your_config.md')[:3])
    base = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    # One file sets a variable once; the guide shows its parts one by one.
    parts = re.split(r'^train_dataloader = ', overrides, flags=re.MULTILINE)
    text = parts[0].replace('my_config.py', base) + 'train_dataloader = ' + parts[1]
    (tmp_path / 'first.py').write_text(text)
    (tmp_path / 'second.py').write_text("_base_ = 'first.py'\ntrain_dataloader = " + parts[2])
    cfg = Config.fromfile(str(tmp_path / 'second.py'))
    assert cfg.train_dataloader.sampler.type == 'lt_mm.GroupedRepeatAugSampler'
    (pipeline,) = cfg.train_dataloader.dataset.pipeline
    assert next(step['type'] for step in pipeline['transforms']) == 'LoadImageFromFile'
    head = cfg.model.roi_head
    assert head.type == 'lt_mm.LossTransformHead' and head.head.type == 'StandardRoIHead'


def test_the_overrides_of_the_readme_are_those_of_the_config(tmp_path):
    (code,) = code_of(README)
    (tmp_path / 'shown.py').write_text(code)
    shown = Config.fromfile(str(tmp_path / 'shown.py'))
    assert shown.to_dict() == Config.fromfile(str(CONFIGS / 'faster_rcnn_r50_lt.py')).to_dict()


def test_the_config_of_the_tutorial_is_the_demo_with_pictures(tmp_path):
    (code,) = code_of(DOCS / 'tutorial.md')
    (tmp_path / 'my_run_lt.py').write_text(code.replace("'configs/", f"'{CONFIGS}/"))
    shown = Config.fromfile(str(tmp_path / 'my_run_lt.py')).to_dict()
    assert shown.pop('custom_hooks') == [dict(type='lt_mm.PairVisualizationHook', interval=60)]
    demo = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    assert shown == demo.to_dict()


def test_the_code_of_the_api_page_runs():
    names = {}
    for code in code_of(DOCS / 'api.md'):
        exec(code, names)
    assert names['model'].head.lt_options.rho == 0.5
    assert names['image'].source_id == 17
    # What the border cut off does not come back.
    whole = torch.tensor([[10.0, 10.0, 40.0, 50.0]])
    assert (names['restored'][:, :2] >= whole[:, :2] - 1e-4).all()
    assert (names['restored'][:, 2:] <= whole[:, 2:] + 1e-4).all()
    assert names['num_pairs'] == 4
    assert names['logits'].grad[:4].abs().sum() > 0


@pytest.mark.parametrize('name', ['cost.md', 'interruptions.md'])
def test_settings_that_a_page_shows_are_those_of_a_config(tmp_path, name):
    for number, code in enumerate(code_of(DOCS / name)):
        path = tmp_path / f'part_{number}.py'
        path.write_text(code)
        assert Config.fromfile(str(path)).to_dict()
