#!/usr/bin/env bash
# A job on Cloud TPU VMs: asks for slices, waits for them, runs the job on all hosts, and gives the slices back.
#
#   launch/queued_resource.sh [create|wait|run|delete|all] --name=NAME --type=TYPE --zone=ZONE --workdir=gs://BUCKET/PATH
#       [--project=P] [--slices=K] [--spot | --reserved] [--runtime=VERSION] [--most-hours=H] [--dry-run] -- FLAGS...
#
#   launch/queued_resource.sh all --name=docid --type=v5p-128 --zone=us-east5-a --spot \
#       --workdir=gs://my-bucket/docid -- --config=configs/docid/minilm.py
#
# TYPE: v5litepod-16, v5p-128, v6e-256, tpu7x-128, ... FLAGS: of python -m diffgr_jax.main, without --workdir and --pod.
# all = create, wait, run, and delete whatever happens. Exit code 75: the slices were taken back or told to leave, and the
# job goes on when started again (launch/retry_preempted.sh does that). --dry-run prints what would be run.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

action='' name='' type='' zone='' project='' slices=1 capacity='' runtime='' workdir='' hours=24 dry_run=''
while (($#)); do
  case $1 in
    create | wait | run | delete | all) action=$1 ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot | --reserved)
      [[ -z $capacity || $capacity == "$1" ]] || fail "--spot and --reserved exclude each other"
      capacity=$1
      ;;
    --runtime=*) runtime=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --most-hours=*) hours=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1 (flags of the program come after --)" ;;
  esac
  shift
done
[[ -n $action ]] || fail "the first argument is one of create, wait, run, delete, all"
check_name --name "$name"
check_zone "$zone"
check_count --slices "$slices"
check_count --most-hours "$hours"
check_accelerator "$type" "$slices"
if [[ $action == run || $action == all ]]; then
  check_workdir "$workdir" "$hosts"
  (($#)) || fail "flags of the program come after --, at least --config=FILE.py"
  for flag; do
    [[ $flag != --workdir* && $flag != --pod* ]] || fail "$flag after --: the script gives it"
  done
fi
case $chip in
  v5e) default=v2-alpha-tpuv5-lite ;;
  v5p) default=v2-alpha-tpuv5 ;;
  v6e) default=v2-alpha-tpuv6e ;;
  *) default=v2-alpha-tpu7-ubuntu2404 ;;
esac

queued=(gcloud alpha compute tpus queued-resources)
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

create() {
  local nodes=("--node-id=$name")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  run "${queued[@]}" create "$name" "${where[@]}" "${nodes[@]}" "--accelerator-type=$type" \
    "--runtime-version=${runtime:-$default}" ${capacity:+"$capacity"}
}

state() { "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'; }

wait_until_active() {
  echo "+ wait until $name is ACTIVE, at most $hours h"
  [[ -z $dry_run ]] || return 0
  local now='' before='' end=$((SECONDS + hours * 3600))
  while ((SECONDS < end)); do
    now=$(state)
    [[ $now == "$before" ]] || echo "$(date +%H:%M:%S) $name: $now"
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING) return 75 ;;
    esac
    sleep "${POLL_SECONDS:-20}"
  done
  fail "$name is still $now after $hours h"
}

run_job() {
  local archive=/tmp/diffgr_jax.tar.gz flags command
  run git -C "$here/.." archive --format=tar.gz "--output=$archive" HEAD
  run "${queued[@]}" scp "$archive" "$name:diffgr_jax.tar.gz" "${where[@]}" --node=all --worker=all
  flags=$(printf ' %q' "$@")
  command="mkdir -p diffgr_jax && tar xzf diffgr_jax.tar.gz -C diffgr_jax && cd diffgr_jax"
  command+=" && launch/on_host.sh --chip=$chip --workdir=$(printf %q "$workdir") --$flags"
  local code=0
  run "${queued[@]}" ssh "$name" "${where[@]}" --node=all --worker=all "--command=$command" || code=$?
  if ((code != 0)) && [[ $(state) != ACTIVE ]]; then
    echo "$name was taken back: the job goes on from its last checkpoint when started again" >&2
    code=75
  fi
  return "$code"
}

delete() { run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet; }

case $action in
  create) create ;;
  wait) wait_until_active ;;
  run) run_job "$@" ;;
  delete) delete ;;
  all)
    [[ -n $dry_run ]] || trap delete EXIT
    create
    wait_until_active
    run_job "$@"
    [[ -z $dry_run ]] || delete
    ;;
esac
