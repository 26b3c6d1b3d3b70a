#!/usr/bin/env bash
# A job on a GKE cluster that xpk made: one workload of one or more slices, started again by GKE when it is preempted.
#
#   launch/xpk.sh --name=NAME --cluster=C --type=TYPE --zone=ZONE --image=IMAGE --workdir=gs://BUCKET/PATH
#       [--project=P] [--slices=K] [--most-restarts=N] [--dry-run] -- FLAGS...
#
#   docker build -t us-docker.pkg.dev/my-project/tpu/diffgr_jax -f launch/Dockerfile . && docker push ...
#   launch/xpk.sh --name=docid --cluster=tpus --type=v5p-128 --zone=us-east5-a --slices=2 \
#       --image=us-docker.pkg.dev/my-project/tpu/diffgr_jax --workdir=gs://my-bucket/docid -- --config=configs/docid/minilm.py
#
# The containers run launch/on_host.sh, which mounts the bucket.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

name='' cluster='' type='' zone='' project='' image='' workdir='' slices=1 restarts=20 dry_run=''
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --most-restarts=*) restarts=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown argument $1 (flags of the program come after --)" ;;
  esac
  shift
done
check_name --name "$name"
check_name --cluster "$cluster"
check_zone "$zone"
check_count --slices "$slices"
check_count --most-restarts "$restarts"
check_accelerator "$type" "$slices"
[[ $image == */* ]] || fail "--image is REGISTRY/PATH[:TAG], not '$image'"
check_workdir "$workdir" 2 # GKE gives a container no folder that outlives it
(($#)) || fail "flags of the program come after --, at least --config=FILE.py"

run xpk workload create "--workload=$name" "--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"} \
  "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$restarts" \
  "--command=exec launch/on_host.sh --chip=$chip --workdir=$(printf %q "$workdir") --$(printf ' %q' "$@")"
