# SPDX-License-Identifier: MIT
# tap.sh: TAP for tests written in bash.  Source it; it needs no other file.
#
#   . "${INFILL_ROOT:?}/lib/test/tap.sh"
#   plan 3                                  or: skip_all "no /dev/userfaultfd"
#   ok "a file is there" test -e "$file"    runs a command: ok when it succeeds
#   not_ok "no file is there" test -e "$file"
#   is "exit status" "$status" 2            compares two strings
#   like "message" "$text" 'what: why'      matches an extended regular expression
#   skip "pages of 2 MiB" "no huge pages"   counts as one result
#   diag "text"                             for the log
#
# A script that ends before its plan is fulfilled fails; no need to check that.

tap_count=0

plan() {
	printf '1..%s\n' "$1"
}

skip_all() {
	printf '1..0 # SKIP %s\n' "$1"
	exit 0
}

diag() {
	printf '%s\n' "$*" | sed 's/^/# /'
}

# tap_result STATUS NAME
tap_result() {
	tap_count=$((tap_count + 1))
	if [ "$1" = 0 ]; then
		printf 'ok %d - %s\n' "$tap_count" "$2"
	else
		printf 'not ok %d - %s\n' "$tap_count" "$2"
	fi
	return "$1"
}

ok() {
	local name=$1 status=0
	shift
	"$@" >&2 || status=1
	tap_result $status "$name"
}

not_ok() {
	local name=$1 status=0
	shift
	if "$@" >&2; then
		status=1
	fi
	tap_result $status "$name"
}

is() {
	local status=0
	[ "$2" = "$3" ] || status=1
	tap_result $status "$1" || {
		diag "is:     $2"
		diag "should: $3"
		return 1
	}
}

like() {
	local status=0
	grep -qE -- "$3" <<<"$2" || status=1
	tap_result $status "$1" || {
		diag "is:     $2"
		diag "should: match $3"
		return 1
	}
}

skip() {
	tap_count=$((tap_count + 1))
	printf 'ok %d - %s # SKIP %s\n' "$tap_count" "$1" "$2"
}
