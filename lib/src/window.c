/* SPDX-License-Identifier: MIT */
/*
 * window.c: a table of mapped windows, found by their number.  Internal; the
 * figures below were chosen by bench/restore and may be tuned.
 */
#include "image.h"
#include "window.h"

#define FIRST_TRY 16  /* pages asked for in a window before it pays to map it */
#define LATER_TRY 32 /* ... after it was found not to be in memory */

static struct window *slot(struct windows *w, uint64_t offset)
{
	return &w->entry[offset / WINDOW_BYTES % WINDOWS];
}

static uint64_t first_byte(const struct window *e)
{
	return (e->number - 1) * WINDOW_BYTES;
}

void window_range(const struct infill_image *image, uint64_t offset, uint64_t *from, size_t *bytes)
{
	uint64_t left;

	*from = offset - offset % WINDOW_BYTES;
	/* The last window of an image may be shorter. */
	left = infill_image_bytes(image) - *from;
	*bytes = left < WINDOW_BYTES ? left : WINDOW_BYTES;
}

/* Remember it as past; an earlier one that nobody took goes now. */
static void drop(struct windows *w, struct window *e, struct infill_image *image)
{
	if (e->state == WINDOW_MAPPED) {
		if (w->past_bytes)
			image_unmap(image, w->past, w->past_bytes);
		window_range(image, first_byte(e), &w->past, &w->past_bytes);
	}
	*e = (struct window){ 0 };
}

size_t window_past(struct windows *w, uint64_t *from)
{
	size_t bytes = w->past_bytes;

	*from = w->past;
	w->past_bytes = 0;
	return bytes;
}

enum window_state window_ask(struct windows *w, struct infill_image *image, uint64_t offset,
			     size_t length)
{
	struct window *e = slot(w, offset);

	if (e->number != offset / WINDOW_BYTES + 1) {
		if (e->state == WINDOW_MAPPING)
			return WINDOW_UNMAPPED; /* another one has the slot for now */
		drop(w, e, image);
		e->number = offset / WINDOW_BYTES + 1;
		e->again = FIRST_TRY;
	}
	if (e->state != WINDOW_UNMAPPED)
		return e->state == WINDOW_MAPPED ? WINDOW_MAPPED : WINDOW_UNMAPPED;
	e->asked += (uint32_t)(length / IMAGE_PAGE);
	if (e->asked < e->again)
		return WINDOW_UNMAPPED;
	e->asked = 0;
	e->again = LATER_TRY;
	e->state = WINDOW_MAPPING;
	return WINDOW_MAPPING;
}

void window_mapped(struct windows *w, uint64_t offset, bool ok)
{
	slot(w, offset)->state = ok ? WINDOW_MAPPED : WINDOW_UNMAPPED;
}

void window_drop(struct windows *w, struct infill_image *image, uint64_t offset)
{
	if (slot(w, offset)->number == offset / WINDOW_BYTES + 1)
		drop(w, slot(w, offset), image);
}

void window_drop_all(struct windows *w, struct infill_image *image)
{
	for (unsigned i = 0; i < WINDOWS; i++)
		if (w->entry[i].state != WINDOW_MAPPING)
			drop(w, &w->entry[i], image);
	if (w->past_bytes)
		image_unmap(image, w->past, w->past_bytes);
	w->past_bytes = 0;
}
