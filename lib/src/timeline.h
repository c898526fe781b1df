/* SPDX-License-Identifier: MIT */
/*
 * timeline.h: a log of every install, for pictures.  Text, one line each:
 *   T_NS OFFSET BYTES CLASS     a run of pages was installed
 *   T_NS - - MARK               something happened
 * T_NS is CLOCK_MONOTONIC, OFFSET and BYTES are of the image.  Lines are
 * buffered and written whole, so that several sessions can share one file
 * that was opened with O_APPEND.  A write that fails ends the log silently:
 * it is an aid and must not harm the guest.
 * Internal; any thread may call everything but timeline_free().
 */
#ifndef INFILL_TIMELINE_H
#define INFILL_TIMELINE_H

#include <stddef.h>
#include <stdint.h>

enum timeline_class {
	TIMELINE_DEMAND,
	TIMELINE_TRACE,
	TIMELINE_REST,
	TIMELINE_ZERO,
	TIMELINE_POISON,
};

struct timeline; /* opaque; NULL everywhere: no log */

/*
 * FD is duplicated.  -EINVAL: not a regular file (a pipe or a terminal can
 * make the pager wait for whoever reads it); else as fcntl(2).
 */
int timeline_new(struct timeline **timeline, int fd);
void timeline_install(struct timeline *t, uint64_t ns, uint64_t offset, uint64_t bytes,
		      enum timeline_class class);
void timeline_mark(struct timeline *t, uint64_t ns, const char *mark);
void timeline_flush(struct timeline *t);
void timeline_free(struct timeline *t); /* flushes */

#endif
