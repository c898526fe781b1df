#!/bin/bash
# SPDX-License-Identifier: MIT
# install.sh: what make install lays down can be used as a packager and as a
# program's author would: pkg-config, shared, static, C++, the command, man.

. "${INFILL_ROOT:?}/lib/test/tap.sh"

cd "$INFILL_ROOT" || exit
prefix=/opt/infill-test
dest=$TMPDIR/dest
# Another prefix bakes another path into the command, so it is built apart.
tree=$TMPDIR/tree
mkdir -p "$tree" && cp -r Makefile lib cli vmm man scripts examples "$tree/" 2>/dev/null
program=$TMPDIR/program.c
cat >"$program" <<'C'
#include <infill.h>
#include <stdio.h>

int main(void)
{
	struct infill_image *image = NULL;

	if (infill_image_open(&image, "/nonexistent", NULL) >= 0)
		return 1;
	printf("%s %s\n", infill_version(), infill_error());
	return 0;
}
C

# pc FLAG...: pkg-config as a cross build would use it, below $dest.
pc() {
	PKG_CONFIG_SYSROOT_DIR=$dest PKG_CONFIG_PATH=$dest$prefix/lib/pkgconfig pkg-config "$@" libinfill
}

# What the pkg-config file says that a static program needs besides.
static_libs() {
	echo "$dest$prefix/lib/libinfill.a -pthread $(pkg-config --libs $(pc --print-requires-private))"
}

plan 13
ok "make install with a prefix and DESTDIR" make -C "$tree" -j2 install DESTDIR="$dest" PREFIX=$prefix
ok "nothing is installed outside the prefix" \
	test -z "$(find "$dest" -type f -not -path "$dest$prefix/*")"
version=$(sed -n 's/^.define INFILL_VERSION "\(.*\)"$/\1/p' lib/include/infill.h)
is "pkg-config knows the header's version" "$(pc --modversion)" "$version"
not_ok "no path of the build is in the pkg-config file" grep -q "$tree\|$dest" "$dest$prefix/lib/pkgconfig/libinfill.pc"

ok "a program compiles against the shared library" \
	gcc -Wall -Wextra -Werror -o "$TMPDIR/shared" "$program" $(pc --cflags --libs)
like "and runs" "$(LD_LIBRARY_PATH=$dest$prefix/lib "$TMPDIR/shared")" "^$version .*/nonexistent"
ok "a program compiles against the static library" \
	gcc -Wall -Wextra -Werror -o "$TMPDIR/static" "$program" $(pc --cflags) $(static_libs)
like "and runs" "$("$TMPDIR/static")" "^$version .*/nonexistent"
not_ok "the static library's internals are hidden" \
	sh -c "nm -g --defined-only '$dest$prefix/lib/libinfill.a' | grep -E ' [A-Z] ' | grep -v ' infill_'"
ok "the header is good C++" sh -c "printf '#include <infill.h>\nint main() { return !infill_version(); }\n' |
	clang++ -std=c++11 -Wall -Wextra -Werror -fsyntax-only -x c++ $(pc --cflags) -"
ok "the header is good C99 by itself" sh -c "echo '#include <infill.h>' |
	clang -std=c99 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c $(pc --cflags) -"
like "the command runs" "$("$dest$prefix/bin/infill" --help 2>&1)" infill
missing=$(sed -n 's/^\t\(infill_[a-z0-9_]*\);$/\1/p' lib/libinfill.map |
	while read -r name; do test -f "$dest$prefix/share/man/man3/$name.3" || echo "$name"; done)
is "man finds a page for each function" "$missing" ""
