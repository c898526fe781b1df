/* SPDX-License-Identifier: MIT */
/*
 * trace.h: which pages a guest touched first, kept in a file and replayed.
 * (recording.h: while they are being recorded.)
 *
 * A trace is a list of 4 KiB page numbers of the image, in first-touch order,
 * bound to the identity of the image.  The file format is documented in
 * trace.c and in infill-trace(7); it may be extended by a new version number
 * only.
 */
#ifndef INFILL_TRACE_H
#define INFILL_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "infill.h"
#include "recording.h"

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
 * -EBADMSG: damaged, or no trace; -ESTALE: of another image; -EPROTO: of a
 * version not known; -EINVAL: not a regular file; -EFBIG: more than 1 GiB;
 * else as open(2) and read(2).  err_set() names the file.
 */
int trace_load(struct trace *trace, const char *path, const struct infill_identity *identity);
void trace_free(struct trace *trace);

/* The same from memory, for trace_load() and the fuzzer.  DATA may be hostile. */
int trace_parse(struct trace *trace, const void *data, size_t length,
		const struct infill_identity *identity, const char *name);

/*
 * Write COUNT page numbers as a trace, atomically (temporary file in the same
 * folder, fsync, rename): PATH is the old trace or the new one, whole.  -EINVAL: a page
 * past the end of the image.
 */
int trace_save(const char *path, const struct infill_identity *identity, const uint32_t *page,
	       size_t count);

/*
 * Turn pages in first-touch order into runs: within each window of touches
 * they are sorted by address and neighbours joined, windows stay in order, a
 * page named twice counts once.  The first window has WINDOW touches, each
 * further one twice as many, up to MOST: what is touched first is wanted soon,
 * and for what comes later there is time to read in the order of addresses.
 * Allocates trace->run, which is NULL when there are none.  -ENOMEM.
 */
int trace_merge(struct trace *trace, const uint32_t *page, size_t count, size_t window,
		size_t most);

/* The same runs by address, for who asks what a page belongs to. */
struct trace_index {
	size_t count;
	struct trace_run *run; /* sorted by offset */
};

/* Make the index of TRACE.  -ENOMEM. */
int trace_index_new(struct trace_index *index, const struct trace *trace);
void trace_index_free(struct trace_index *index);

/* The run that holds image byte OFFSET, or NULL. */
const struct trace_run *trace_index_find(const struct trace_index *index, uint64_t offset);

#define TRACE_WINDOW 256
#define TRACE_WINDOW_MAX 32768

#endif
