#!/usr/bin/env bash
# Trains on every worker of a TPU VM slice: launch/tpu_vm.sh NAME ZONE [--dry_run] -- FLAGS OF experiments.run
# The checkout must be at ~/jattn on every worker; the workdir must be a folder that all workers share.
set -euo pipefail
usage='usage: launch/tpu_vm.sh NAME ZONE [--dry_run] -- FLAGS'
name=${1:?$usage} zone=${2:?$usage}
shift 2
dry_run=
if [ "${1:-}" = --dry_run ]; then dry_run=1; shift; fi
if [ "${1:-}" != -- ]; then echo "$usage" >&2; exit 2; fi
shift
printf -v flags ' %q' "$@"
remote="cd jattn && make .venv/.ready-tpu ACCELERATOR=tpu && .venv/bin/python -m experiments.run --distributed$flags"
set -- gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote"
if [ -n "$dry_run" ]; then printf '%q ' "$@"; echo; else exec "$@"; fi
