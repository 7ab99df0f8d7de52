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
#   LT_MM_OPS       auto (default), cpu or cuda: what mmcv's operators are built for
#   MAX_JOBS        number of compilers that run at once
#   XDG_CACHE_HOME  compiled wheels are kept in $XDG_CACHE_HOME/lt_mm/wheels
#
# A second run finds everything in place and returns at once. A run that was
# interrupted is continued by the next one.

# Sourced: work in a child, so that neither `set -e` nor an `exit` reaches the
# caller's shell. `source FILE` hands over the caller's own arguments; only
# --family is meant for this script.
if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
  _lt_mm_family=onedl
  if [[ "${1:-}" == --family ]]; then _lt_mm_family="${2:-}"; fi
  bash "${BASH_SOURCE[0]}" --family "$_lt_mm_family" || return
  _lt_mm_venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv"
  if [[ "$_lt_mm_family" != onedl ]]; then _lt_mm_venv+="-$_lt_mm_family"; fi
  # shellcheck disable=SC1091
  source "$_lt_mm_venv/bin/activate"
  unset _lt_mm_family _lt_mm_venv
  return
fi

set -euo pipefail

readonly SETUP_VERSION=1 # raise it when an existing environment must be redone
readonly MIN_MINOR=10 MAX_MINOR=13
readonly PROGRESS_SECONDS=15
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root

say() { printf '[setup] %s\n' "$*"; }

die() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

parse_arguments() {
  family=onedl
  while (($#)); do
    case "$1" in
      --family)
        (($# > 1)) || die "--family needs a name: onedl or openmmlab"
        family="$2"
        shift 2
        ;;
      --family=*) family="${1#*=}" && shift ;;
      -h | --help) sed -n '2,/^$/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit 0 ;;
      *) die "unknown argument '$1'; usage: tools/setup_env.sh [--family onedl|openmmlab]" ;;
    esac
  done
  case "$family" in
    onedl) venv="$root/.venv" mmcv_name=onedl-mmcv ;;
    openmmlab) venv="$root/.venv-openmmlab" mmcv_name=mmcv ;;
    *) die "unknown family '$family'; choose onedl or openmmlab" ;;
  esac
  case "${LT_MM_OPS:=auto}" in
    auto | cpu | cuda) ;;
    *) die "LT_MM_OPS is '$LT_MM_OPS'; choose auto, cpu or cuda" ;;
  esac
  lock="$root/tools/requirements/$family.txt"
  log="$venv/setup.log"
  stamp="$venv/.lt_mm_setup"
}

# ---------------------------------------------------------------- stamp

# The pinned version of a package: the lock file is the only place with numbers.
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$lock"; }

# Everything that the environment depends on. The path is part of it: a copy of
# the tree carries a .venv whose editable install still points at the original.
fingerprint() {
  printf 'setup %s\npath %s\nops %s\n' "$SETUP_VERSION" "$root" "$(wanted_ops)"
  "$venv/bin/python" --version 2>&1
  cat "$lock" "$root/pyproject.toml"
}

digest() { fingerprint | cksum; }

is_up_to_date() {
  [[ -f "$stamp" && -x "$venv/bin/python" ]] && [[ "$(<"$stamp")" == "$(digest)" ]]
}

# ---------------------------------------------------------------- Python

# A Python without ensurepip (Debian without python3-venv) makes environments
# that lack pip, so it does not count.
usable_python() {
  "$1" -c "import sys, venv, ensurepip
sys.exit(not (3, $MIN_MINOR) <= sys.version_info[:2] <= (3, $MAX_MINOR))" >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    usable_python "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.$MIN_MINOR to" \
      "3.$MAX_MINOR with venv and ensurepip"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.10 python3.13 python3; do
    if usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "found no Python 3.$MIN_MINOR to 3.$MAX_MINOR with venv and ensurepip." \
    "Install one (on Debian: python3 python3-venv python3-dev) or name it: PYTHON=/path/to/python3.11"
}

# ---------------------------------------------------------------- steps

# Compilers and pip write to the log; the screen shows one line a step.
show_failure() {
  # A compiler's message stands far above pip's account of the failure.
  { grep -m 5 -E '(fatal )?error: ' "$1" || true; } >&2
  printf '[setup] the last lines of the log:\n' >&2
  # pip says this once for every package where a configured location lacks it.
  { grep -v 'is ignored: it is neither a file nor a directory' "$1" || true; } | tail -n 30 >&2
  die "$2 failed; the whole log is $1"
}

# step TITLE COMMAND...: runs the command into the log, and prints its duration.
step() {
  local title="$1" start=$SECONDS
  shift
  say "$title ..."
  printf '\n=== %s: %s\n' "$title" "$*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null || show_failure "$log" "$title"
  if ((SECONDS - start >= 2)); then say "  done in $((SECONDS - start)) s"; fi
}

py() { "$venv/bin/python" "$@"; }
pip() { py -m pip --disable-pip-version-check --no-input -q "$@"; }

make_venv() {
  local python
  if [[ -x "$venv/bin/python" ]] && py -c '' 2>/dev/null; then
    usable_python "$venv/bin/python" || die "$venv has $(py --version 2>&1), which is" \
      "not 3.$MIN_MINOR to 3.$MAX_MINOR; remove it and run this again"
    say "continuing with $venv ($(py --version 2>&1))"
  else
    python="$(find_python)"
    # What is there does not run: its Python was removed, or it was never made.
    find "$venv" -mindepth 1 -maxdepth 1 ! -name setup.log ! -name .setup.lock -exec rm -rf {} +
    step "make $venv with $("$python" --version 2>&1)" "$python" -m venv "$venv"
  fi
  if ! py -m pip --version >/dev/null 2>&1; then
    step "put pip into $venv" py -m ensurepip --upgrade
  fi
}

install_build_tools() {
  step "pin pip" pip install "pip==$(pinned pip)"
  step "install torch $(pinned torch) and the build tools (about 2 minutes, 6 GB on disk)" \
    pip install -c "$lock" torch torchvision setuptools wheel ninja packaging psutil
}

# ---------------------------------------------------------------- mmcv

# CUDA operators need both: a card without a toolkit cannot build them, and a
# toolkit without a card has no use for them.
wanted_ops() {
  if [[ "$LT_MM_OPS" != auto ]]; then
    echo "$LT_MM_OPS"
  elif find_nvcc >/dev/null && has_card; then
    echo cuda
  else
    echo cpu
  fi
}

find_nvcc() {
  if [[ -n "${CUDA_HOME:-}" && -x "$CUDA_HOME/bin/nvcc" ]]; then
    echo "$CUDA_HOME/bin/nvcc"
  elif command -v nvcc; then
    :
  elif [[ -x /usr/local/cuda/bin/nvcc ]]; then
    echo /usr/local/cuda/bin/nvcc
  else
    return 1
  fi
}

has_card() {
  command -v nvidia-smi >/dev/null || return 1
  local cards
  cards="$(nvidia-smi -L 2>/dev/null)" || return 1
  [[ "$cards" == *GPU* ]]
}

# cpu, or for example cu128-sm90: the toolkit, and the cards that are present,
# because operators are compiled for those cards only.
ops_tag() {
  if [[ "$(wanted_ops)" == cpu ]]; then
    echo cpu
    return
  fi
  local tag
  tag="$(py - "$("$(find_nvcc)" --version)" <<'PY'
import re
import sys

import torch

nvcc = re.search(r'release (\d+)\.(\d+)', sys.argv[1])
cuda = torch.version.cuda
if cuda is None or not torch.cuda.is_available():
    sys.exit('torch does not see the card')
if nvcc is None or nvcc.group(1) != cuda.split('.')[0]:
    sys.exit(f'torch was built for CUDA {cuda} and nvcc is of another major '
             f'release ({nvcc.group(1) if nvcc else "unknown"})')
arches = {'sm%d%d' % torch.cuda.get_device_capability(i)
          for i in range(torch.cuda.device_count())}
print('-'.join(['cu' + ''.join(nvcc.groups()), *sorted(arches)]))
PY
)" || {
    [[ "$LT_MM_OPS" == auto ]] || die "LT_MM_OPS=cuda, but CUDA operators cannot be built here"
    say "  building mmcv's operators for the CPU only: they will not run on the card" >&2
    tag=cpu
  }
  echo "$tag"
}

# What the installed mmcv was compiled for; nothing if it is absent or unusable.
installed_ops() {
  py - "$mmcv_name" "$(pinned "$mmcv_name")" 2>/dev/null <<'PY' || true
import importlib.metadata
import sys

name, version = sys.argv[1:]
assert importlib.metadata.version(name) == version
from mmcv.ops import get_compiling_cuda_version
cuda = get_compiling_cuda_version()
print('cpu' if cuda == 'not available' else 'cu' + cuda.replace('.', ''))
PY
}

# As many compilers as there are cores, and 2 GB of memory for each.
build_jobs() {
  local cores memory
  cores="$(nproc)"
  memory="$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo 2>/dev/null || true)"
  if ((${memory:-$cores} < cores)); then cores=$memory; fi
  echo "${MAX_JOBS:-$((cores > 0 ? cores : 1))}"
}

# Prints how far the compilers are until it is killed or its parent is gone.
report_progress() {
  local build_log="$1" parent=$$ start=$SECONDS last=$SECONDS count finished total elapsed
  while kill -0 "$parent" 2>/dev/null; do
    # Short sleeps that hold no file open: the one that is running when the
    # build ends must not keep a pipe or the lock.
    sleep 1 >/dev/null 2>&1 9>&-
    if ((SECONDS - last < PROGRESS_SECONDS)); then continue; fi
    last=$SECONDS elapsed=$((SECONDS - start))
    # Lines of ninja: "  [35/78] c++ -MMD ..."
    count="$(sed -n 's|^ *\[\([0-9]*\)/\([0-9]*\)\] .*|\1 \2|p' "$build_log" | tail -n 1)"
    if [[ -z "$count" ]]; then
      say "  preparing, ${elapsed} s so far"
      continue
    fi
    finished="${count% *}" total="${count#* }"
    say "  $finished of $total files compiled, ${elapsed} s so far," \
      "about $((elapsed * (total - finished) / finished)) s to go"
  done
}

# build_mmcv CACHE_DIR TAG: compiles into a directory of its own and moves the
# finished wheel, so that an interrupted build leaves no half wheel.
build_mmcv() {
  local cache="$1" tag="$2" build_log="$1/build.log" jobs start=$SECONDS status=0
  local requirement
  requirement="$mmcv_name==$(pinned "$mmcv_name")"
  jobs="$(build_jobs)"
  mkdir -p "$cache"
  build_dir="$(mktemp -d "$cache/.build-XXXXXX")"
  say "compile $requirement for $tag with $jobs jobs (once for this machine;" \
    "for the CPU about $((11 / jobs + 1)) minutes, for CUDA several times that)"
  say "  log: $build_log"
  : >"$build_log"
  report_progress "$build_log" &
  watcher=$!
  compile_mmcv "$requirement" "$tag" "$jobs" >"$build_log" 2>&1 </dev/null || status=$?
  stop_watcher
  ((status == 0)) || show_failure "$build_log" "compiling $requirement"
  mv "$build_dir"/*.whl "$cache/"
  rm -rf "$build_dir"
  say "  done in $((SECONDS - start)) s"
}

# -O2 -g0: debug symbols double the build time, and optimisation is worth its
# part of it, because nms and RoIAlign run on the CPU in the tests.
compile_mmcv() {
  local requirement="$1" tag="$2"
  export MMCV_WITH_OPS=1 MAX_JOBS="$3" CFLAGS='-O2 -g0' CXXFLAGS='-O2 -g0'
  export PATH="$venv/bin:$PATH" # ninja
  if [[ "$tag" == cpu ]]; then
    # mmcv builds for CUDA wherever torch sees a card, whatever FORCE_CUDA says.
    export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=''
  else
    local nvcc
    nvcc="$(find_nvcc)"
    export FORCE_CUDA=1 CUDA_HOME="${nvcc%/bin/nvcc}"
  fi
  py -m pip --disable-pip-version-check --no-input wheel -v --no-cache-dir \
    --no-build-isolation --no-deps -w "$build_dir" "$requirement"
}

stop_watcher() {
  if [[ -n "${watcher:-}" ]]; then
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    watcher=''
  fi
}

# find_wheel CACHE_DIR: the wheel of the pinned version for this kind of machine.
find_wheel() {
  local wheels=("$1/${mmcv_name//-/_}-$(pinned "$mmcv_name")-"*"_$(uname -m).whl")
  if [[ -f "${wheels[0]}" ]]; then echo "${wheels[0]}"; fi
}

install_mmcv() {
  local tag cache wheel python_tag
  tag="$(ops_tag)"
  if [[ "$(installed_ops)" == "${tag%%-*}" ]]; then return; fi
  python_tag="$(py -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
  cache="${XDG_CACHE_HOME:-$HOME/.cache}/lt_mm/wheels/$python_tag-torch$(pinned torch)-$tag"
  wheel="$(find_wheel "$cache")"
  if [[ -z "$wheel" ]]; then
    build_mmcv "$cache" "$tag"
    wheel="$(find_wheel "$cache")"
    [[ -n "$wheel" ]] || die "the build left no wheel in $cache"
  else
    say "mmcv was compiled before: $wheel"
  fi
  # --force-reinstall: a build for the other device has the same version.
  step "install mmcv" pip install --no-deps --force-reinstall "$wheel"
}

# ---------------------------------------------------------------- the rest

install_packages() {
  # Some come as source archives; --no-build-isolation builds them with the
  # pinned setuptools instead of the newest one.
  step "install the other pinned packages (about 1 minute)" \
    pip install --no-build-isolation -r "$lock"
  step "install lt_mm in place" pip install --no-deps --no-build-isolation -e "$root"
}

check_environment() {
  step "check the versions against each other" py -m pip --disable-pip-version-check check
  # -I: neither the current directory nor PYTHONPATH may stand in for what is installed.
  step "check that the packages can be imported" py -I -c \
    'import torch, torchvision, mmcv.ops, mmdet, mmpretrain, pycocotools.mask, cv2'
}

# Two runs at once (two test sessions) must not install into one environment.
take_lock() {
  mkdir -p "$venv"
  if command -v flock >/dev/null; then
    exec 9>"$venv/.setup.lock"
    flock -n 9 || { say "waiting for another run of this script" && flock 9; }
  fi
}

clean_up() {
  stop_watcher
  rm -rf "${build_dir:-}"
}

main() {
  parse_arguments "$@"
  if is_up_to_date; then
    say "environment is up to date: $venv"
    return
  fi
  trap clean_up EXIT
  take_lock
  if is_up_to_date; then
    say "environment is up to date: $venv"
    return
  fi
  local start=$SECONDS
  : >"$log"
  make_venv
  install_build_tools
  install_mmcv
  install_packages
  check_environment
  digest >"$stamp"
  say "ready in $((SECONDS - start)) s: $venv (activate it with: source ${venv#"$root"/}/bin/activate)"
}

main "$@"
