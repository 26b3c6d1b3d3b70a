#!/usr/bin/env bash
# What each host of a job runs: mounts the bucket, makes the environment, tells the compiler its flags, starts training.
#
#   launch/on_host.sh --chip=v5p --workdir=gs://BUCKET/PATH [--dry-run] -- FLAGS...
#
# The bucket is mounted by gcsfuse at ~/gcs/BUCKET, so that all hosts share the workdir as one folder. A bucket with a
# hierarchical namespace renames a folder in one step, which is what makes a finished checkpoint visible.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

chip='' workdir='' dry_run=''
while (($#)); do
  case $1 in
    --chip=*) chip=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1 (flags of the program come after --)" ;;
  esac
  shift
done
arguments=$(python3 "$here/flags.py" "$chip") || exit 2
check_workdir "$workdir" 1
(($#)) || fail "flags of the program come after --, at least --config=FILE.py"

folder=$workdir
if [[ $workdir == gs://* ]]; then
  bucket=${workdir#gs://} bucket=${bucket%%/*}
  mount=$HOME/gcs/$bucket
  folder=$mount/${workdir#"gs://$bucket/"}
  run mkdir -p "$mount"
  mountpoint -q "$mount" || run gcsfuse --implicit-dirs "$bucket" "$mount"
fi
cd "$here/.."
[[ -d .venv ]] || run python3 -m venv .venv
run .venv/bin/python -m pip install --quiet -r requirements.txt 'jax[tpu]>=0.10.2,<0.11'
run_last env "LIBTPU_INIT_ARGS=$arguments" DIFFGR_POD=1 .venv/bin/python -m diffgr_jax.main "--workdir=$folder" "$@"
