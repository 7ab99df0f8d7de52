#!/usr/bin/env bash
# Trains a config as a SLURM job that survives time limits and preemption.
#
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
#
# Outside a job it submits itself and prints the job's number and log. The job trains
# with one process a GPU and resumes what WORK_DIR holds. At SIGUSR1 (sent before the
# time limit) or SIGTERM (preemption) training saves a checkpoint and exits with 75; the
# job is then requeued and goes on where it stopped. `scancel JOB` ends it for good.
#
# Environment variables:
#   GPUS           number of processes, each with a GPU (8); 0: train on the CPU
#   NTASKS         number of processes with GPUS=0 (1)
#   GPUS_PER_NODE  GPUS, 8 at the most
#   CPUS_PER_TASK  cores a process (5)
#   GRACE          seconds between the warning and the time limit (120)
#   WAIT           1: return when the job has ended, with its exit code
#   SBATCH_ARGS    more arguments of sbatch, such as "--time=4:00:00 --account=vision"
#   SRUN_ARGS      more arguments of srun
#   MASTER_PORT    port on which the processes meet; by default made from the job's number
set -euo pipefail

readonly REQUEUE_EXIT_CODE=75 # lt_mm/engine/hooks/preemption_hook.py
# What srun returns for a task that the signal ended before training could answer it.
readonly DIED_OF_USR1=138 DIED_OF_TERM=143
# How long the other processes may take to finish once one has ended. With srun's
# --kill-on-bad-exit the first one to exit with 75 would kill those that still save.
readonly FINISH_SECONDS=300

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly root script="$root/tools/slurm_train.sh"

say() { printf '[slurm_train] %s\n' "$*"; }

die() {
  printf '[slurm_train] error: %s\n' "$*" >&2
  exit 2
}

# whole_number NAME DEFAULT
whole_number() {
  local value="${!1:-$2}"
  [[ "$value" =~ ^[0-9]+$ ]] || die "$1 is '$value'; expected a whole number"
  echo "$((10#$value))"
}

# Sets `resources`, which sbatch and srun take alike.
read_resources() {
  local gpus gpus_per_node ntasks cpus
  gpus="$(whole_number GPUS 8)"
  ntasks="$(whole_number NTASKS 1)"
  cpus="$(whole_number CPUS_PER_TASK 5)"
  if ((gpus > 0)); then
    gpus_per_node="$(whole_number GPUS_PER_NODE "$((gpus < 8 ? gpus : 8))")"
    resources=(--ntasks="$gpus" --ntasks-per-node="$gpus_per_node"
      --gres="gpu:$gpus_per_node")
  else
    resources=(--ntasks="$ntasks")
    export CUDA_VISIBLE_DEVICES='' # a node's cards that were not asked for
  fi
  resources+=(--cpus-per-task="$cpus" --job-name="$job_name")
}

submit() {
  command -v sbatch >/dev/null || die "sbatch is not in the PATH: is this a login node of a" \
    "SLURM cluster? On one machine use tools/dist_train.sh CONFIG NUM_PROCESSES"
  local sbatch_args options grace
  grace="$(whole_number GRACE 120)"
  read -ra sbatch_args <<<"${SBATCH_ARGS:-}"
  options=(--parsable --partition="$partition" "${resources[@]}" --requeue
    --open-mode=append --output="$work_dir/slurm-%j.out"
    --signal="USR1@$grace")
  if [[ "${WAIT:-0}" == 1 ]]; then options+=(--wait); fi
  mkdir -p "$work_dir"
  # SLURM copies the script it is given: this one calls back to where the tools are.
  # stdbuf: with --wait the number is wanted before the job has ended.
  stdbuf -oL sbatch "${options[@]}" ${sbatch_args[@]+"${sbatch_args[@]}"} <<SCRIPT |
#!/usr/bin/env bash
exec bash $(printf '%q ' "$script" "$@")
SCRIPT
    while IFS=';' read -r job _; do
      say "submitted job $job"
      say "log: $work_dir/slurm-$job.out"
    done
}

run_job() {
  local srun_args resume=() status=0
  read -ra srun_args <<<"${SRUN_ARGS:-}"
  # A requeued job goes on from its own checkpoint, whichever it was started from.
  if ((${SLURM_RESTART_COUNT:-0} > 0)); then resume=(--resume); fi
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}"
  # The signals are for the tasks; this shell stays until they have ended. (With '' in
  # place of : the tasks would inherit that the signals are ignored.)
  trap : TERM USR1
  PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" srun "${resources[@]}" \
    --kill-on-bad-exit=0 --wait="$FINISH_SECONDS" ${srun_args[@]+"${srun_args[@]}"} \
    python -u "$root/tools/train.py" "$config" --work-dir "$work_dir" --resume \
    --launcher slurm "$@" ${resume[@]+"${resume[@]}"} || status=$?
  case "$status" in
    "$REQUEUE_EXIT_CODE" | "$DIED_OF_USR1" | "$DIED_OF_TERM") requeue "$status" ;;
  esac
  exit "$status"
}

requeue() {
  local state
  state="$(scontrol --oneliner show job "$SLURM_JOB_ID" |
    sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')" || true
  if [[ "$state" != RUNNING ]]; then
    # scancel, or a preemption in which SLURM itself requeues.
    say "stopped with exit code $1; SLURM ends this job already (${state:-state unknown})"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    say "stopped with exit code $1; requeued job $SLURM_JOB_ID, which goes on from there"
  else
    say "stopped with exit code $1, and job $SLURM_JOB_ID cannot be requeued; the same" \
      "command goes on from there"
  fi
}

(($# >= 4)) || die "$# arguments; usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG" \
  "WORK_DIR [arguments of tools/train.py]"
partition="$1" job_name="$2" config="$3" work_dir="$4"
[[ -f "$config" ]] || die "the config $config does not exist"
read_resources
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  submit "$@"
else
  shift 4
  run_job "$@"
fi
