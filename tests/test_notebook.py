"""The notebook of the tutorial: its form, and what its cells do."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.paths import DOCS, REPOSITORY

NOTEBOOK = DOCS / 'tutorial.ipynb'
# The cells, one after the other, as a kernel without IPython would run them.
RUN = """
import json, sys
names = {'__name__': '__main__'}
for cell in json.load(open(sys.argv[1]))['cells']:
    if cell['cell_type'] == 'code':
        exec(compile(''.join(cell['source']), cell['id'], 'exec'), names)
print('LOGGED', names['log'][names['terms']].to_json(orient='records'))
print('PAIRED', int(names['is_paired'](names['groups']).sum()), len(names['groups']))
print('AP', names['wrapped']['coco/bbox_mAP'])
"""


def test_the_notebook_is_small_and_has_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 100_000
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    ids = [cell['id'] for cell in notebook['cells']]
    assert len(set(ids)) == len(ids) > 10
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None
            assert len(cell['source']) < 40, 'a long cell'
        else:
            for link in re.findall(r'\]\(([^)#]+)', ''.join(cell['source'])):
                assert (DOCS / link).exists(), link


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path):
    """In a folder beside links to the repository, which stays as it is."""
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    done = subprocess.run(
        [sys.executable, '-c', RUN, str(NOTEBOOK)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = dict(re.findall(r'^(LOGGED|PAIRED|AP) (.*)$', done.stdout, flags=re.MULTILINE))
    terms = json.loads(told['LOGGED'])
    assert len(terms) == 6  # 2 epochs of 30 steps, a line for every 10
    assert all(step['lt_num_paired'] > 0 and step['loss_lt_bbox'] > 0 for step in terms)
    paired, count = map(int, told['PAIRED'].split())
    assert 0 <= paired <= count <= 10 and count > 0
    assert 0 <= float(told['AP']) <= 1
    assert (tmp_path / 'work_dirs/tutorial/restored.png').exists()
