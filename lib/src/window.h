/* SPDX-License-Identifier: MIT */
/*
 * window.h: the parts of an image that are mapped for filling ahead.
 *
 * Asking whether bytes are in memory and filling page tables costs the same
 * for 2 MiB as for a page or two, so it is done for windows of 2 MiB, once,
 * and only for those that several runs fall into: a trace comes back to the
 * same window many times.  A window that is not all in memory is remembered
 * as such for a while.
 * Internal; used by the session's thread.
 */
#ifndef INFILL_WINDOW_H
#define INFILL_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

#define WINDOW_BYTES (2u << 20)
#define WINDOWS 256

struct window {
	uint64_t number;  /* offset / WINDOW_BYTES, plus 1; 0: free */
	const char *data; /* NULL: not mapped */
	uint32_t asked;   /* pages asked for since the last attempt to map */
	uint32_t again;   /* attempt again when so many were asked for */
};

struct windows {
	struct window entry[WINDOWS];
};

/*
 * A pointer to the bytes, which must lie in one window, or NULL: read them.
 * As image_map(), but freshness is the caller's to check.
 */
const char *window_map(struct windows *w, struct infill_image *image, uint64_t offset,
		       size_t length);

/* Let go of the window that OFFSET lies in, or of all: the RSS falls. */
void window_drop(struct windows *w, struct infill_image *image, uint64_t offset);
void window_drop_all(struct windows *w, struct infill_image *image);

#endif
