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

enum window_state {
	WINDOW_UNMAPPED, /* read the bytes */
	WINDOW_MAPPING,  /* the same; somebody is about to map it */
	WINDOW_MAPPED,
};

struct window {
	uint64_t number; /* offset / WINDOW_BYTES, plus 1; 0: free */
	enum window_state state;
	uint32_t asked;   /* pages asked for since the last attempt to map */
	uint32_t again;   /* attempt again when so many were asked for */
};

struct windows {
	struct window entry[WINDOWS];
	uint64_t past;     /* a window that is done with, still in the page tables */
	size_t past_bytes; /* 0: none */
};

/*
 * What to do for LENGTH bytes at OFFSET, all in one window: WINDOW_MAPPED: use
 * them at image_at(); WINDOW_UNMAPPED: read them; WINDOW_MAPPING, once for a
 * window: have its window_range() populated, then call window_mapped().
 */
enum window_state window_ask(struct windows *w, struct infill_image *image, uint64_t offset,
			     size_t length);

/* The window's bytes, for who maps it. */
void window_range(const struct infill_image *image, uint64_t offset, uint64_t *from, size_t *bytes);

/* It was populated, or that failed. */
void window_mapped(struct windows *w, uint64_t offset, bool ok);

/*
 * The window that OFFSET lies in is not needed any more.  Its page tables go
 * with the next window_past(), so that the session's thread need not wait for
 * that: returns its length, 0 if there is none, and sets *FROM.
 */
void window_drop(struct windows *w, struct infill_image *image, uint64_t offset);
size_t window_past(struct windows *w, uint64_t *from);

/* Let go of all now: the RSS falls. */
void window_drop_all(struct windows *w, struct infill_image *image);

#endif
