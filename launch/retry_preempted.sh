#!/usr/bin/env bash
# Starts a job again for as long as it is preempted: it goes on from its last checkpoint each time.
#
#   launch/retry_preempted.sh [--most=N] [--pause=SECONDS] [--dry-run] -- COMMAND...
#
#   launch/retry_preempted.sh -- launch/queued_resource.sh all --name=docid --type=v5p-128 --zone=us-east5-a --spot \
#       --workdir=gs://my-bucket/docid -- --config=configs/docid/minilm.py
#
# Preempted means exit code 75 (told to leave, and saved), 137 or 143 (killed). Any other code is the job's own and ends it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

most=20 pause=30 dry_run=''
while (($#)); do
  case $1 in
    --most=*) most=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1 (the command comes after --)" ;;
  esac
  shift
done
check_count --most "$most"
[[ $pause =~ ^[0-9]+$ ]] || fail "--pause is a number of seconds, not '$pause'"
(($#)) || fail "the command comes after --"
if [[ -n $dry_run ]]; then
  run "$@"
  echo "+ again after $pause s while it exits with 75, 137 or 143, at most $most times"
  exit 0
fi

for ((attempt = 1; attempt <= most; attempt++)); do
  code=0
  "$@" || code=$?
  case $code in
    75 | 137 | 143) echo "retry_preempted: attempt $attempt of $most was preempted (exit code $code)" >&2 ;;
    *) exit "$code" ;;
  esac
  ((attempt == most)) || sleep "$pause"
done
echo "retry_preempted: preempted $most times; start again to go on" >&2
exit 75
