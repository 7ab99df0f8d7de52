"""How mmcv's operators are compiled by tools/setup_env.sh, with stand-ins for the compiler."""

import os
import subprocess
import sys

import pytest

from tests.paths import TOOLS

# A stand-in writes down how it is called, and compiles nothing.
GCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "c++ 12. Copyright Free Software Foundation"; exit; fi
echo "$@" >>"$0.calls"
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo header >"$2"; fi
    shift
done
"""
REFUSING = GCC.replace('while', 'case "$*" in *fsyntax-only*) exit 1;; esac\nwhile')
BROKEN = GCC.replace('while', 'exit 1\nwhile')
CLANG = GCC.replace('Free Software Foundation', 'the LLVM project, clang')
DRIVER = f"""
venv={sys.prefix!r} build_dir="$PWD" built_for=cpu jobs=2 requirement=mmcv
pip() {{ printf 'pip %s CFLAGS=%s\\n' "$1" "$CFLAGS"; }}
precompile_headers
expected_time && echo
compile_mmcv
"""


def run(tmp_path, compiler):
    """What the functions of the script print, and the calls of the compiler."""
    script = (TOOLS / 'setup_env.sh').read_text()
    assert script.endswith('\nmain "$@"\n')
    (tmp_path / 'driver.sh').write_text(script.replace('\nmain "$@"\n', DRIVER))
    (tmp_path / 'c++').write_text(compiler)
    (tmp_path / 'c++').chmod(0o755)
    done = subprocess.run(
        ['bash', 'driver.sh'],
        cwd=tmp_path,
        env={**os.environ, 'CXX': str(tmp_path / 'c++')},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    calls = tmp_path / 'c++.calls'
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_headers_are_precompiled_under_the_options_of_the_build(tmp_path):
    said, (header, check) = run(tmp_path, GCC)
    for call in (header, check):
        # Those that setuptools passes where CFLAGS is set; one more macro, and GCC refuses.
        assert {'-O2', '-g0', '-fPIC', '-std=c++17', '-Winvalid-pch'} <= set(call.split())
        assert '-DNDEBUG' not in call
    assert '-x c++-header' in header and '-include' in check
    assert 'that takes about 4 minutes' in said
    assert f"pip wheel CFLAGS=-O2 -g0 -include '{tmp_path}/torch_types.h'" in said
    assert (tmp_path / 'torch_types.h').read_text().split() == [
        '#include',
        '<torch/types.h>',
        '#include',
        '<vector>',
    ]


@pytest.mark.parametrize('compiler', [CLANG, BROKEN, REFUSING], ids=['clang', 'broken', 'refusing'])
def test_other_compilers_build_without_and_it_is_said(tmp_path, compiler):
    said, calls = run(tmp_path, compiler)
    assert f'{tmp_path}/c++ cannot use precompiled headers, so that takes about 12 minutes' in said
    assert 'pip wheel CFLAGS=-O2 -g0\n' in said
    assert not (tmp_path / 'torch_types.h.gch').exists()
    assert len(calls) == (0 if compiler is CLANG else 1 if compiler is BROKEN else 2)
