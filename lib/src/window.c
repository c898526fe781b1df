/* SPDX-License-Identifier: MIT */
/*
 * window.c: a table of mapped windows, found by their number.  Internal; the
 * figures below were chosen by bench/restore and may be tuned.
 */
#include "image.h"
#include "window.h"

#define FIRST_TRY 16  /* pages asked for in a window before it pays to map it */
#define LATER_TRY 128 /* ... after it was found not to be in memory */

static struct window *slot(struct windows *w, uint64_t offset)
{
	return &w->entry[offset / WINDOW_BYTES % WINDOWS];
}

static uint64_t first_byte(const struct window *e)
{
	return (e->number - 1) * WINDOW_BYTES;
}

/* The last window of an image may be shorter. */
static size_t bytes_of(const struct window *e, const struct infill_image *image)
{
	uint64_t left = infill_image_bytes(image) - first_byte(e);

	return left < WINDOW_BYTES ? left : WINDOW_BYTES;
}

static void drop(struct window *e, struct infill_image *image)
{
	if (e->number && e->data)
		image_unmap(image, first_byte(e), bytes_of(e, image));
	*e = (struct window){ 0 };
}

static void try_to_map(struct window *e, struct infill_image *image)
{
	e->asked = 0;
	e->again = LATER_TRY;
	e->data = image_map(image, first_byte(e), bytes_of(e, image));
}

const char *window_map(struct windows *w, struct infill_image *image, uint64_t offset,
		       size_t length)
{
	struct window *e = slot(w, offset);

	if (e->number != offset / WINDOW_BYTES + 1) {
		drop(e, image);
		e->number = offset / WINDOW_BYTES + 1;
		e->again = FIRST_TRY;
	}
	if (!e->data) {
		e->asked += (uint32_t)(length / IMAGE_PAGE);
		if (e->asked >= e->again)
			try_to_map(e, image);
	}
	return e->data ? e->data + offset % WINDOW_BYTES : NULL;
}

void window_drop(struct windows *w, struct infill_image *image, uint64_t offset)
{
	if (slot(w, offset)->number == offset / WINDOW_BYTES + 1)
		drop(slot(w, offset), image);
}

void window_drop_all(struct windows *w, struct infill_image *image)
{
	for (unsigned i = 0; i < WINDOWS; i++)
		drop(&w->entry[i], image);
}
