#!/usr/bin/env bash
# A pod on this machine: the same entry point as N processes that find each other through jax.distributed (CPU, gloo).
#
#   launch/local_pod.sh [--devices=D] [--logs=DIR] [--grace=SECONDS] [--module=NAME] [--dry-run] N -- FLAGS...
#
#   launch/local_pod.sh 2 -- --config=configs/docid/base.py:size=tiny,steps=50 --workdir=workdir/pod
#
# Process 0 shows on the terminal, the others in DIR/process_I.log. When one process fails, the others get --grace seconds
# to end by themselves and are then killed: the job always ends, with a line that says which process began it. SIGTERM and
# SIGINT go to all processes. Exit code: 0, that of the first process that failed, or 75 if all were told to leave and saved.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

devices=4 logs='' grace=20 module=diffgr_jax.main dry_run='' processes=''
while (($#)); do
  case $1 in
    --devices=*) devices=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --module=*) module=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    --*) fail "unknown option $1 (flags of the program come after --)" ;;
    *) [[ -z $processes ]] || fail "one number of processes, not $processes and $1"; processes=$1 ;;
  esac
  shift
done
check_count "the number of processes" "$processes"
check_count --devices "$devices"
[[ $grace =~ ^[0-9]+$ ]] || fail "--grace is a number of seconds, not '${grace}'"
(($#)) || fail "flags of the program come after --, at least --config=FILE.py"

python=${PYTHON:-python3}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
command=("$python" -m "$module" "$@")
environment=(
  "JAX_PLATFORMS=cpu" "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
  "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes"
)
if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    echo "env ${environment[*]} JAX_PROCESS_ID=$i ${command[*]}"
  done
  exit 0
fi

logs=${logs:-$(mktemp -d -t local_pod.XXXXXX)}
mkdir -p "$logs"
pids=() told=''
for ((i = 0; i < processes; i++)); do
  if ((i == 0)); then
    env "${environment[@]}" "JAX_PROCESS_ID=$i" "${command[@]}" &
  else
    env "${environment[@]}" "JAX_PROCESS_ID=$i" "${command[@]}" >"$logs/process_$i.log" 2>&1 &
  fi
  pids+=("$!")
done
printf '%s\n' "${pids[@]}" >"$logs/pids"

signal_all() {
  for pid in "${pids[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}
trap 'told=1; signal_all TERM' TERM INT

describe() {
  case $1 in
    0) echo "ended" ;;
    75) echo "was told to leave, and saved" ;;
    *) if (($1 > 128)); then echo "was killed by signal $(($1 - 128))"; else echo "failed with exit code $1"; fi ;;
  esac
}

code=0 left=$processes deadline=0
declare -A ended=()
while ((left > 0)); do
  for ((i = 0; i < processes; i++)); do
    pid=${pids[i]}
    if [[ -z ${ended[$i]:-} ]] && ! kill -0 "$pid" 2>/dev/null; then
      status=0
      wait "$pid" || status=$?
      ended[$i]=$status
      left=$((left - 1))
      if ((status != 0 && code == 0)); then
        code=$status
        if ((status != 75)) || [[ -z $told ]]; then
          echo "local_pod: process $i of $processes $(describe "$status"); the others have $grace s to end" >&2
          ((i == 0)) || tail -n 3 "$logs/process_$i.log" | sed "s/^/local_pod: process $i: /" >&2
        fi
        deadline=$((SECONDS + grace))
      fi
    fi
  done
  if ((deadline > 0 && left > 0 && SECONDS >= deadline)); then
    echo "local_pod: $left processes did not end within $grace s: killed" >&2
    signal_all KILL
    deadline=$((SECONDS + 60))
  fi
  ((left == 0)) || sleep 0.2 || true
done
((code == 0)) || echo "local_pod: the job ended with exit code $code; start it again to go on from its last checkpoint (logs: $logs)" >&2
exit "$code"
