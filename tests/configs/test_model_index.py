"""model-index.yml says of each config what the config does, and what docs/results.md measured."""

import re
from pathlib import Path

import mmengine
import pytest
from mmengine.config import Config

from tests.paths import CONFIGS, DOCS, REPOSITORY

FILES = sorted(
    path.relative_to(REPOSITORY) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)
METAFILES = mmengine.load(REPOSITORY / 'model-index.yml')['Import']
CONTENTS = {metafile: mmengine.load(REPOSITORY / metafile) for metafile in METAFILES}
MODELS = [model for content in CONTENTS.values() for model in content['Models']]
TRAINING_DATA = {
    'data/bccd': 'BCCD',
    'data/cifar10': 'CIFAR-10',
    'data/cifar10_folder/train': 'CIFAR-10',
    'data/cifar100': 'CIFAR-100',
    'data/coco': 'COCO',
    'data/imagenet': 'ImageNet-1k',
    'data/pennfudan': 'PennFudanPed',
    'data/shapes': 'Shapes',
    'data/voc2012': 'PASCAL VOC 2012',
}


def test_every_folder_has_a_metafile_of_its_configs():
    folders = {path.parent for path in FILES}
    assert sorted(METAFILES) == sorted(f'{folder}/metafile.yml' for folder in folders)
    for metafile, content in CONTENTS.items():
        listed = [model['Config'] for model in content['Models']]
        there = [str(path) for path in FILES if path.parent == Path(metafile).parent]
        assert sorted(listed) == there, f'{metafile} does not list its folder'


def test_names_are_those_of_the_files_and_unique():
    names = [model['Name'] for model in MODELS]
    assert names == [Path(model['Config']).stem for model in MODELS]
    assert len(set(names)) == len(names)
    assert names == [name.lower() for name in names]  # mim looks for them in lower case


def test_collections_have_what_mim_shows():
    collections = [
        collection for content in CONTENTS.values() for collection in content.get('Collections', [])
    ]
    assert {c['Name'] for c in collections} == {m['In Collection'] for m in MODELS}
    assert all((REPOSITORY / c['README']).is_file() for c in collections)


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_entry_equals_config(model):
    # No weights are published.
    assert model.keys() - {'Results'} == {'Name', 'Config', 'In Collection', 'Metadata'}
    cfg = Config.fromfile(str(REPOSITORY / model['Config']))
    assert model['In Collection'] == _collection_of(cfg)
    dataset, sampler = cfg.train_dataloader.dataset, cfg.train_dataloader.sampler
    while 'data_root' not in dataset:
        dataset = dataset.get('dataset') or dataset.labelled
    expected = {
        'Training Data': TRAINING_DATA[dataset.data_root.rstrip('/')],
        'Epochs': cfg.train_cfg.max_epochs,
        'Batch Size': cfg.train_dataloader.batch_size,
    }  # of a process
    if 'num_repeats' in sampler:
        expected |= {'Replicas': sampler.num_repeats, 'Mode': sampler.get('mode', 'full')}
    assert model['Metadata'] == expected


def _collection_of(cfg: Config) -> str:
    types = str(cfg.model)
    if 'lt_mm.LossTransformHead' in types:
        return 'LossTransform'
    return 'SupCon' if 'lt_mm.SupConHead' in types else 'Plain'


def test_results_are_those_of_the_page():
    metrics = {
        model['Name']: [
            value for result in model['Results'] for value in result['Metrics'].values()
        ]
        for model in MODELS
        if 'Results' in model
    }
    assert metrics == _results_of_the_page()


def _results_of_the_page() -> dict[str, list[float]]:
    """The numbers of the rows that a config gives as it is, without further options."""
    page = (DOCS / 'results.md').read_text()
    section = page.split('\n## Single runs\n')[1].split('\n## ')[0]
    rows = re.findall(r'^\|.*\|(.*)\| `tools/train\.py (\S+)` \|$', section, re.MULTILINE)
    return {
        Path(config).stem: [float(n) for n in re.findall(r'\d+\.\d+', result)]
        for result, config in rows
    }
