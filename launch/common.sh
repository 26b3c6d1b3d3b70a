# shellcheck shell=bash
# What the launch scripts share: errors in one line, checks of arguments, and --dry-run. Sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints a command as it could be typed; runs it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n ${dry_run:-} ]] || "$@"
}

# The same for the last command of a script, which then gets the signals itself.
run_last() {
  dry_run=1 run "$@"
  [[ -n ${dry_run:-} ]] || exec "$@"
}

check_name() { # FLAG VALUE
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "$1 is a name of up to 40 lower-case letters, digits and -, not '$2'"
}

check_zone() { # VALUE
  [[ $1 =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone is a zone such as us-east5-a, not '$1'"
}

check_count() { # FLAG VALUE
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 is a whole number from 1, not '$2'"
}

# Sets chip and hosts (of all slices together).
# shellcheck disable=SC2034
check_accelerator() { # TYPE SLICES
  chip=$(python3 "$here/flags.py" --chip-of "$1") || exit 2
  hosts=$(($(python3 "$here/flags.py" --hosts-of "$1") * $2))
}

check_workdir() { # VALUE HOSTS
  if [[ $1 == gs://* ]]; then
    [[ $1 =~ ^gs://[a-z0-9][-._a-z0-9]{1,61}[a-z0-9]/[^[:space:]]+$ ]] || fail "--workdir is gs://BUCKET/PATH, not '$1'"
  elif (($2 > 1)); then
    fail "--workdir=$1 is a local folder, another one on each of the $2 hosts: give gs://BUCKET/PATH, which all share"
  elif [[ -z $1 ]]; then
    fail "--workdir is missing: gs://BUCKET/PATH"
  fi
}
