#!/usr/bin/env bash
# Makes the virtual environment of this repository, with pinned versions.
#
#   tools/setup_env.sh [--family onedl|openmmlab]
#
#   onedl      .venv            the maintained OneDL forks (the default)
#   openmmlab  .venv-openmmlab  the original OpenMMLab releases
#
# `source tools/setup_env.sh` does the same and then activates the environment.
#
# Environment variables:
#   PYTHON          the Python to build on, 3.10 to 3.13
#   LT_MM_OPS       auto (default), cpu or cuda: what mmcv's operators are compiled for
#   MAX_JOBS        number of compilers that run at once
#   XDG_CACHE_HOME  compiled wheels are kept in $XDG_CACHE_HOME/lt_mm/wheels
#
# A second run finds everything in place and returns at once. A run that was
# interrupted is continued by the next one. The log is setup.log in the environment.

# Sourced: work in a child process, so that neither `set -e` nor an `exit` reaches the
# caller's shell. `source FILE` hands over the caller's own arguments, of which only
# --family is meant for this script.
if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
  if [[ "${1:-}" == --family ]]; then _lt_mm_family="${2:-}"; else _lt_mm_family=onedl; fi
  bash "${BASH_SOURCE[0]}" --family "$_lt_mm_family" || return
  if [[ "$_lt_mm_family" == onedl ]]; then _lt_mm_family=''; fi
  # shellcheck disable=SC1090
  source "$(dirname "${BASH_SOURCE[0]}")/../.venv${_lt_mm_family:+-$_lt_mm_family}/bin/activate"
  unset _lt_mm_family
  return
fi

set -euo pipefail

readonly SETUP_VERSION=2 # raise it when an existing environment must be redone
readonly usage="usage: tools/setup_env.sh [--family onedl|openmmlab]"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '[setup] %s\n' "$*"; }
die() { say "error: $*" >&2 && exit 1; }

parse_arguments() {
  family=onedl
  while (($#)); do
    case "$1" in
      --family) family="${2:-}" && shift $(($# > 1)) ;;
      --family=*) family="${1#*=}" ;;
      -h | --help) sed -n '2,/^$/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit 0 ;;
      *) die "unknown argument '$1'; $usage" ;;
    esac
    shift
  done
  case "$family" in
    onedl) venv="$root/.venv" mmcv=onedl-mmcv ;;
    openmmlab) venv="$root/.venv-openmmlab" mmcv=mmcv ;;
    *) die "unknown family '$family'; $usage" ;;
  esac
  lock_file="$root/tools/requirements/$family.txt" log="$venv/setup.log" stamp="$venv/.lt_mm_setup"
}

# Sets `ops` and `nvcc`. CUDA operators need both: a card without a toolkit cannot build
# them, and a toolkit without a card has no use for them.
choose_ops() {
  ops="${LT_MM_OPS:-auto}"
  nvcc="$(command -v "${CUDA_HOME:-}/bin/nvcc" nvcc /usr/local/cuda/bin/nvcc | head -n 1)" || true
  case "$ops" in
    auto) [[ -n "$nvcc" && "$(nvidia-smi -L 2>/dev/null)" == *GPU* ]] && ops=cuda || ops=cpu ;;
    cpu | cuda) ;;
    *) die "LT_MM_OPS is '$ops'; choose auto, cpu or cuda" ;;
  esac
}

# Everything that the environment depends on. The path is part of it: a copy of the
# tree carries a .venv whose editable install still points at the original.
digest() {
  printf '%s\n' "$SETUP_VERSION" "$root" "$ops" "$(py --version)" "$(<"$lock_file")" \
    "$(<"$root/pyproject.toml")" | cksum
}

# The pinned version of a package: the lock file is the only place with numbers.
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$lock_file"; }

py() { "$venv/bin/python" "$@"; }
pip() { py -m pip --disable-pip-version-check --no-input "$@"; }

# step TITLE COMMAND...: the command writes to the log, and of a compilation the screen
# shows every fifth file.
step() {
  local title="$1" start=$SECONDS
  shift
  say "$title ..."
  printf '\n=== %s: %s\n' "$title" "$*" >>"$log"
  "$@" 2>&1 </dev/null | tee -a "$log" |
    { grep --line-buffered -oE '^ *\[[0-9]*[05]/[0-9]+\]' || true; } || show_failure "$title"
  if ((SECONDS - start >= 2)); then say "  done in $((SECONDS - start)) s"; fi
}

show_failure() {
  # A compiler's message stands far above pip's account of the failure.
  grep -m 5 -E '(fatal )?error: ' "$log" >&2 || true
  say "the last lines of the log:" >&2
  grep -v '^WARNING: ' "$log" | tail -n 30 >&2
  die "$1 failed; the whole log is $log"
}

# A Python without ensurepip (Debian without python3-venv) makes environments that lack
# pip, so it does not count.
usable_python() {
  "$1" -c 'import sys, venv, ensurepip
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

make_venv() {
  if py -m pip --version >/dev/null 2>&1; then
    usable_python "$venv/bin/python" || die "$venv has $(py --version), which is not 3.10 to" \
      "3.13; remove it and run this again"
    return
  fi
  local python candidates=("${PYTHON:-python3.11}")
  if [[ -z "${PYTHON:-}" ]]; then candidates+=(python3.12 python3.10 python3.13 python3); fi
  for python in "${candidates[@]}"; do
    if ! usable_python "$python"; then continue; fi
    rm -rf "${venv:?}"/* # what is there does not run
    step "make $venv with $("$python" --version)" "$python" -m venv "$venv"
    return
  done
  die "found no Python 3.10 to 3.13 with venv and ensurepip${PYTHON:+: PYTHON=$PYTHON is not one}." \
    "Install one (on Debian: python3 python3-venv python3-dev) or name it: PYTHON=/path/to/python"
}

# Sets `built_for`: cpu, or for example cu128-sm90, the toolkit and the cards that are
# present, because operators are compiled for those cards only.
check_ops() {
  built_for=cpu
  if [[ "$ops" == cpu ]]; then return; fi
  built_for="$(py - "$("${nvcc:-nvcc}" --version)" <<'PY'
import sys

import torch

nvcc = sys.argv[1].partition('release ')[2].partition(',')[0]
if not torch.cuda.is_available():
    sys.exit('torch does not see the card')
if nvcc.split('.')[0] != torch.version.cuda.split('.')[0]:
    sys.exit(f'torch was built for CUDA {torch.version.cuda}, and nvcc is of release {nvcc!r}')
cards = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
print('-'.join(['cu' + nvcc.replace('.', ''), *sorted({'sm%d%d' % card for card in cards})]))
PY
)" && return
  [[ "${LT_MM_OPS:-auto}" == auto ]] || die "CUDA operators cannot be built here"
  say "  building mmcv's operators for the CPU only: they will not run on the card" >&2
  built_for=cpu
}

# -O2 -g0: debug symbols double the build time, and optimisation is worth its part of
# it, because nms and RoIAlign run on the CPU in the tests.
readonly optimization='-O2 -g0'

# The headers of torch take most of the time of every file; GCC reads them precompiled,
# but only under the very options and macros they were compiled with: those that
# setuptools will pass. A precompiled header that GCC does not take is removed again.
precompile_headers() {
  local compiler=("${CXX:-c++}") header="$build_dir/torch_types.h" options
  [[ "$("${compiler[@]}" --version)" == *"Free Software Foundation"* ]] || return 0
  mapfile -t options < <(CFLAGS="$optimization" py -c 'import setuptools
from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler
from torch.utils.cpp_extension import include_paths
compiler = new_compiler()
customize_compiler(compiler)
print(*compiler.compiler_so[1:], *("-I" + path for path in include_paths()), sep="\n")')
  printf '#include <torch/types.h>\n#include <vector>\n' >"$header"
  compiler+=("${options[@]}" -std=c++17 -Winvalid-pch -Werror=invalid-pch)
  "${compiler[@]}" -x c++-header "$header" -o "$header.gch" &&
    "${compiler[@]}" -include "$header" -fsyntax-only -x c++ /dev/null || rm -f "$header.gch"
}

compile_mmcv() {
  export MMCV_WITH_OPS=1 MAX_JOBS="$jobs" CFLAGS="$optimization" CXXFLAGS="$optimization"
  export PATH="$venv/bin:$PATH"
  if [[ -f "$build_dir/torch_types.h.gch" ]]; then CFLAGS+=" -include '$build_dir/torch_types.h'"; fi
  if [[ "$built_for" == cpu ]]; then
    # mmcv builds for CUDA wherever torch sees a card, whatever FORCE_CUDA says.
    export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=''
  else
    export FORCE_CUDA=1 CUDA_HOME="${nvcc%/bin/nvcc}"
  fi
  pip wheel -v --no-cache-dir --no-build-isolation --no-deps -w "$build_dir" "$requirement"
}

# What the compilation takes, in the line that tells of it.
expected_time() {
  if [[ "$built_for" != cpu ]]; then
    printf 'for CUDA that takes half an hour and more'
  elif [[ -f "$build_dir/torch_types.h.gch" ]]; then
    printf 'that takes about %d minutes' "$((6 / jobs + 1))"
  else
    printf '%s cannot use precompiled headers, so that takes about %d minutes' \
      "${CXX:-c++}" "$((23 / jobs + 1))"
  fi
}

# The operators are compiled once for a machine, in a directory of their own: an
# interrupted build leaves no half wheel.
install_mmcv() {
  local requirement cache jobs
  requirement="$mmcv==$(pinned "$mmcv")"
  cache="${XDG_CACHE_HOME:-$HOME/.cache}/lt_mm/wheels/$(py -c 'import sys
print("cp%d%d" % sys.version_info[:2])')-torch$(pinned torch)-$built_for"
  find_wheel() { compgen -G "$cache/${mmcv//-/_}-${requirement#*==}-*_$(uname -m).whl"; }
  if ! find_wheel >/dev/null; then
    mkdir -p "$cache"
    build_dir="$(mktemp -d "$cache/.build-XXXXXX")"
    # As many compilers as there are cores, and 2 GB of memory for each.
    jobs="${MAX_JOBS:-$(awk -v cores="$(nproc)" '/^MemAvailable/ {n = int($2 / 2e6)}
      END {print n < 1 ? 1 : n < cores ? n : cores}' /proc/meminfo)}"
    if [[ "$built_for" == cpu ]]; then step "precompile the headers of torch" precompile_headers; fi
    say "mmcv's operators are compiled once for this machine; $(expected_time)"
    step "compile $requirement for $built_for with $jobs jobs" compile_mmcv
    mv "$build_dir"/*.whl "$cache/"
  fi
  # --force-reinstall: a build for the other device has the same version.
  step "install $(find_wheel)" pip install --no-deps --force-reinstall "$(find_wheel)"
}

main() {
  parse_arguments "$@"
  choose_ops
  mkdir -p "$venv"
  exec 9>"$venv/.setup.lock" # two runs at once must not install into one environment
  flock -n 9 || { say "waiting for another run of this script" && flock 9; }
  if [[ -x "$venv/bin/python" && -f "$stamp" && "$(<"$stamp")" == "$(digest)" ]]; then
    say "environment is up to date: $venv"
    return
  fi
  trap 'rm -rf "${build_dir:-}"' EXIT
  trap 'say "interrupted; the next run goes on from here" >&2 && exit 130' INT TERM
  : >"$log"
  make_venv
  step "pin pip" pip install "pip==$(pinned pip)"
  step "install torch $(pinned torch) and the build tools (about 2 minutes, 6 GB on disk)" \
    pip install -c "$lock_file" torch torchvision setuptools wheel ninja packaging psutil
  check_ops
  install_mmcv
  # Some come as source archives: the pinned setuptools builds them instead of the newest.
  step "install the other pinned packages (about 1 minute)" \
    pip install --no-build-isolation -r "$lock_file"
  step "install lt_mm in place" pip install --no-deps --no-build-isolation -e "$root"
  step "check the versions against each other" pip check
  # -I: neither the current directory nor PYTHONPATH may stand in for what is installed.
  step "check that the packages can be imported" py -I -c \
    'import torch, torchvision, mmcv.ops, mmdet, mmpretrain, pycocotools.mask, cv2'
  digest >"$stamp"
  say "ready in $SECONDS s: $venv (activate it with: source ${venv#"$root"/}/bin/activate)"
}

main "$@"
