/* SPDX-License-Identifier: MIT */
/*
 * trace.h: which pages a guest touched first, recorded and replayed.
 *
 * A trace is a list of 4 KiB page numbers of the image, in first-touch order,
 * bound to the identity of the image.  The file format is documented in
 * trace.c and in infill-trace(7); it may be extended by a new version number
 * only.
 */
#ifndef INFILL_TRACE_H
#define INFILL_TRACE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

/* A run of image bytes, page aligned. */
struct trace_run {
	uint64_t offset;
	uint64_t length;
};

struct trace {
	size_t count; /* runs, in the order to replay */
	uint64_t bytes;
	struct trace_run *run;
};

/*
 * Read the trace at PATH for the image IDENTITY.  Neighbours that were
 * touched close in time become one run (trace_merge()).
 * -EBADMSG: damaged; -ESTALE: of another image; -EPROTO: of a version not
 * known; else as open(2) and read(2).  err_set() names the file.
 */
int trace_load(struct trace *trace, const char *path, const struct infill_identity *identity);
void trace_free(struct trace *trace);

/* The same from memory, for trace_load() and the fuzzer.  DATA may be hostile. */
int trace_parse(struct trace *trace, const void *data, size_t length,
		const struct infill_identity *identity, const char *name);

/*
 * Write COUNT page numbers as a trace, atomically (temporary file in the same
 * folder, fsync, rename): PATH is the old trace or the new one, whole.
 */
int trace_save(const char *path, const struct infill_identity *identity, const uint32_t *page,
	       size_t count);

/*
 * Turn pages in first-touch order into runs: within each window of WINDOW
 * touches they are sorted by address and neighbours joined, windows stay in
 * order, a page named twice counts once.  Allocates trace->run.
 */
int trace_merge(struct trace *trace, const uint32_t *page, size_t count, size_t window);

#define TRACE_WINDOW 1024

/*
 * A recording under way, in the session's state memfd: survives the process.
 * Single writer.
 */
struct recording {
	_Atomic uint64_t count;     /* pages in `page` */
	_Atomic uint64_t capacity;
	_Atomic uint64_t first_ns;  /* first touch; 0: none yet */
	_Atomic uint64_t window_ns; /* begin of the settle window under way */
	_Atomic uint64_t window_count; /* touches in it */
	_Atomic uint32_t closed;
	uint32_t reserved;
	_Atomic uint32_t page[];
};

#define RECORDING_SETTLED 16 /* fewer first touches than this in a settle window close it */

struct recording_limits {
	uint64_t settle_ns, time_ns, pages;
};

/* Add the first touch of COUNT pages from PAGE on at time NOW.  Ignored once closed or full. */
void recording_add(struct recording *r, uint32_t page, uint32_t count, uint64_t now);

/* Is the window over at NOW?  (settled, too long, or full; never before the first touch) */
bool recording_over(struct recording *r, const struct recording_limits *limits, uint64_t now);

/* When to ask again: ns from NOW. */
uint64_t recording_next(const struct recording *r, const struct recording_limits *limits,
			uint64_t now);

#endif
