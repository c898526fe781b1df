#!/bin/bash
# SPDX-License-Identifier: MIT
# examples.sh: every program in examples/ is built, and says how it is used when
# it is started without arguments, so none can end in a crash or a wait.

. "${INFILL_ROOT:?}/lib/test/tap.sh"

shopt -s nullglob
sources=("$INFILL_ROOT"/examples/*.c)
plan $((1 + 2 * ${#sources[@]}))
ok "there are examples" test ${#sources[@]} -gt 0
for source in "${sources[@]}"; do
	name=$(basename "$source" .c)
	ok "$name is built" test -x "$INFILL_BUILD/examples/$name"
	text=$(timeout 10 "$INFILL_BUILD/examples/$name" 2>&1 </dev/null)
	like "$name says how it is used ($?)" "$text" '[Uu]sage|infill'
done
