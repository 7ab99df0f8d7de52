#!/usr/bin/env bash
# Sets the environment up, checks style and types, and runs the tests.
#
#   tools/run_tests.sh [--slow] [--family onedl|openmmlab] [pytest arguments]
#
# Without --slow the tests marked `slow` are left out. ruff and mypy come first, and a
# finding of theirs ends the run; with pytest arguments, which select some tests or
# change how they run, only pytest is run. A path or a node id among these arguments
# takes the place of the whole of tests/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

family=onedl
selection=(-m 'not slow')
pytest_arguments=()
while (($#)); do
  case "$1" in
    --slow) selection=() && shift ;;
    --family)
      family="${2:?--family needs a name: onedl or openmmlab}"
      shift 2
      ;;
    --family=*) family="${1#*=}" && shift ;;
    *) pytest_arguments+=("$1") && shift ;;
  esac
done

bash tools/setup_env.sh --family "$family"
venv=.venv
if [[ "$family" != onedl ]]; then venv+="-$family"; fi

if ((${#pytest_arguments[@]} == 0)); then
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  "$venv/bin/mypy"
fi

# The tests work on tiny tensors, which a second thread does not make faster: they run
# in as many processes as there are cores, four at the most, with one thread each. Each
# process begins with tests that follow one another, so that few modules are set up twice.
cores="$(nproc)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
workers=(--numprocesses "$((cores < 4 ? cores : 4))" --dist worksteal)

# pytest takes tests/ from pyproject.toml where no path is given. The `+` form:
# bash before 4.4 calls an empty array unset.
exec "$venv/bin/python" -m pytest "${workers[@]}" ${selection[@]+"${selection[@]}"} ${pytest_arguments[@]+"${pytest_arguments[@]}"}
