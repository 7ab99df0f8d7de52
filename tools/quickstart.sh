#!/usr/bin/env bash
# From a fresh machine to a trained detector: environment, data, training, AP, picture.
#
#   tools/quickstart.sh
#
# Leaves under work_dirs/faster_rcnn_r18_lt_demo the log, the checkpoint and
# replicas.png. A second run installs nothing, makes nothing again, and resumes a
# training that was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly config=configs/faster_rcnn_r18_lt_demo.py
readonly work_dir=work_dirs/faster_rcnn_r18_lt_demo
readonly epochs=2 # half of the config's schedule

say() { printf '[quickstart] %s\n' "$*"; }

# set -e would not stop at a failure inside the sourced script's child.
source tools/setup_env.sh || exit 1

say "1/4 the data set of shapes"
python tools/dataset_converters/shapes.py data/shapes

checkpoint="$work_dir/epoch_$epochs.pth"
if [[ -f "$checkpoint" ]]; then
  say "2/4 trained already: $checkpoint (remove $work_dir to train again)"
else
  say "2/4 training $config, $epochs epochs, about 4 minutes on 2 cores; eta in the log lines"
  python tools/train.py "$config" --work-dir "$work_dir" --resume \
    --cfg-options train_cfg.max_epochs=$epochs param_scheduler.1.T_max=$epochs
fi

say "3/4 COCO box AP of $checkpoint"
python tools/test.py "$config" "$checkpoint" --work-dir "$work_dir" | tee "$work_dir/test.log" |
  grep -E 'Average Precision|bbox_mAP:' || {
  say "the evaluation failed; its output is in $work_dir/test.log"
  exit 1
}

say "4/4 the picture of replicas and their restored predictions"
python tools/analysis/draw_replicas.py "$config" "$checkpoint" "$work_dir/replicas.png"

say "done. Under $work_dir:"
say "  log         $(grep -l 'Epoch(train)' "$work_dir"/*/*.log | sort | tail -n 1)"
say "  checkpoint  $checkpoint"
say "  picture     $work_dir/replicas.png"
