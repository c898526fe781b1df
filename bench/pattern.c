/* SPDX-License-Identifier: MIT */
/*
 * pattern.c: orders of touch.  A new pattern is a function here and a line in
 * demand.c.
 */
#include "pattern.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "content.h"
#include "machine.h"

/* The trace file, version 1, as infill-trace(7) has it. */
#define TRACE_MAGIC "infilltr"
#define TRACE_VERSION 1u
#define TRACE_HEADER 56u
#define TRACE_COUNT_AT 48u
#define TRACE_MOST (256u << 20) /* bytes of a file that is still looked at */

static void make(struct pattern *p, const char *name, size_t count)
{
	*p = (struct pattern){ .name = name, .count = count };
	p->granule = calloc(count + 1, sizeof(*p->granule));
	if (!p->granule)
		fail(name, "no memory");
}

void pattern_sequential(struct pattern *p, size_t granules)
{
	make(p, "sequential", granules);
	p->contiguous = true;
	for (size_t i = 0; i < granules; i++)
		p->granule[i] = (uint32_t)i;
}

void pattern_random(struct pattern *p, size_t granules, size_t count)
{
	uint64_t state = 0x510e527fade682d1ull;

	make(p, "random", granules);
	for (size_t i = 0; i < granules; i++)
		p->granule[i] = (uint32_t)i;
	for (size_t i = granules; i > 1; i--) {
		size_t k = machine_random(&state) % i;
		uint32_t other = p->granule[k];

		p->granule[k] = p->granule[i - 1];
		p->granule[i - 1] = other;
	}
	if (count < granules)
		p->count = count;
}

static uint64_t load(const uint8_t *at, size_t bytes)
{
	uint64_t value = 0;

	memcpy(&value, at, bytes);
	return le64toh(value);
}

/* The whole file at PATH; its length in *LENGTH. */
static uint8_t *read_file(const char *path, size_t *length)
{
	FILE *f = fopen(path, "r");
	uint8_t *data;
	long end;

	if (!f || fseek(f, 0, SEEK_END) || (end = ftell(f)) < 0)
		fail(path, "cannot be read: %s", strerror(errno));
	if (end > (long)TRACE_MOST)
		fail(path, "larger than a trace can be");
	rewind(f);
	*length = (size_t)end;
	data = malloc(*length + 1);
	if (!data || fread(data, 1, *length, f) != *length)
		fail(path, "cannot be read");
	fclose(f);
	return data;
}

/* Number of pages in the trace DATA; fail() if it is damaged. */
static size_t trace_pages(const char *path, const uint8_t *data, size_t length)
{
	size_t pages;

	if (length < TRACE_HEADER + 8 || memcmp(data, TRACE_MAGIC, 8))
		fail(path, "not an infill trace");
	if (load(data + 8, 4) != TRACE_VERSION || load(data + 12, 4) != TRACE_HEADER)
		fail(path, "a trace of another version: record it anew");
	pages = load(data + TRACE_COUNT_AT, 8);
	if (pages > TRACE_MOST / 4 || length != TRACE_HEADER + 4 * pages + 8 ||
	    load(data + length - 8, 8) != XXH3_64bits(data, length - 8))
		fail(path, "damaged: record it anew");
	return pages;
}

void pattern_recorded(struct pattern *p, const char *path, size_t bytes, size_t page)
{
	size_t length, pages, granules = bytes / page;
	uint8_t *data = read_file(path, &length);
	bool *seen = calloc(granules, sizeof(*seen));

	pages = trace_pages(path, data, length);
	make(p, "recorded", pages);
	p->count = 0;
	for (size_t i = 0; i < pages && seen; i++) {
		uint64_t at = load(data + TRACE_HEADER + 4 * i, 4) * CONTENT_PAGE / page;

		if (at >= granules || seen[at])
			continue;
		seen[at] = true;
		p->granule[p->count++] = (uint32_t)at;
	}
	free(seen);
	free(data);
	if (!p->count)
		fail(path, "no page of it is within the image of %zu MiB: see --size", bytes >> 20);
}

void pattern_free(struct pattern *p)
{
	free(p->granule);
	p->granule = NULL;
}
