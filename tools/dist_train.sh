#!/usr/bin/env bash
# Trains a config with torchrun: several processes on one machine, or on several.
#
#   tools/dist_train.sh CONFIG NUM_PROCESSES [arguments of tools/train.py]
#
# NUM_PROCESSES is the number on this node: one a GPU, or CPU processes where there is
# none. On several nodes run it on each of them, with these environment variables:
#   NNODES       number of nodes (1)
#   NODE_RANK    number of this node, from 0 (0)
#   MASTER_ADDR  host of node 0 (127.0.0.1)
#   MASTER_PORT  port of node 0 (PORT, as the stock script calls it, else 29500); on one
#                node by default one that is free
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root

die() {
  printf '[dist_train] error: %s\n' "$*" >&2
  exit 2
}

(($# >= 2)) || die "$# arguments; usage: tools/dist_train.sh CONFIG NUM_PROCESSES" \
  "[arguments of tools/train.py]"
config="$1" processes="$2"
shift 2
[[ -f "$config" ]] || die "the config $config does not exist"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || die "NUM_PROCESSES is '$processes'; expected a number"

nodes="${NNODES:-1}" node_rank="${NODE_RANK:-0}"
address="${MASTER_ADDR:-127.0.0.1}" port="${MASTER_PORT:-${PORT:-}}"
if [[ "$nodes" == 1 && -z "$port" ]]; then
  meeting=(--standalone)
else
  port="${port:-29500}"
  # Only node 0 listens. Connecting to the port works where another process does.
  if [[ "$node_rank" == 0 ]] && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "port $port is taken by another process; choose one that is free, on all nodes:" \
      "MASTER_PORT=29512 bash tools/dist_train.sh ..."
  fi
  meeting=(--nnodes "$nodes" --node-rank "$node_rank"
    --master-addr "$address" --master-port "$port")
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python -m torch.distributed.run \
  "${meeting[@]}" --nproc-per-node "$processes" \
  "$root/tools/train.py" "$config" --launcher pytorch "$@"
