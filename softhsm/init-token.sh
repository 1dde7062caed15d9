#!/bin/sh
# Makes a SoftHSM token for development: a directory with the configuration, the token's objects and the PINs.
#
#   softhsm/init-token.sh DIRECTORY [LABEL]
#
# Refuses a directory that exists: a token is never overwritten. The PINs are random and stay in files that only their
# owner can read; softhsm2-util takes them as arguments, so use this where other users cannot list processes.
set -eu

directory=${1:?usage: init-token.sh DIRECTORY [LABEL]}
label=${2:-keyward}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

command -v softhsm2-util >/dev/null || {
    echo "init-token.sh: softhsm2-util is missing; install SoftHSM 2 (Debian: softhsm2)" >&2
    exit 1
}
if [ -e "$directory" ]; then
    echo "init-token.sh: $directory exists and is left as it is" >&2
    exit 1
fi

umask 077
mkdir -p -- "$(dirname -- "$directory")"
mkdir -- "$directory"
directory=$(CDPATH='' cd -- "$directory" && pwd)
# Half a token would be refused by the next run: take back what this one made, unless it gets to its end.
trap 'rm -rf -- "$directory"' EXIT
trap 'exit 1' HUP INT TERM

case $directory in
*[\|\&\\]*)
    echo "init-token.sh: the path may not contain |, & or a backslash" >&2
    exit 1
    ;;
esac

random_pin() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

mkdir -- "$directory/tokens"
sed "s|@TOKEN_DIR@|$directory/tokens|" "$here/softhsm2.conf.template" >"$directory/softhsm2.conf"
random_pin >"$directory/pin"
random_pin >"$directory/so-pin"

SOFTHSM2_CONF=$directory/softhsm2.conf
export SOFTHSM2_CONF
softhsm2-util --init-token --free --label "$label" \
    --so-pin "$(cat "$directory/so-pin")" --pin "$(cat "$directory/pin")" >&2

trap - EXIT
cat <<END
export SOFTHSM2_CONF='$SOFTHSM2_CONF'
# The token's label is "$label"; its user PIN is in $directory/pin.
END
