/* SPDX-License-Identifier: MIT */
/*
 * cache.h: one copy of an image in a memfd, for many clones (infill_cache).
 *
 * Pages are added only, and always with the image's content, so two threads
 * that add one page write the same bytes: no page is claimed and no lock is
 * taken.  A bit per page, set with release after the bytes are there, says
 * that UFFDIO_CONTINUE may map it.
 * Internal; any thread.
 */
#ifndef INFILL_CACHE_H
#define INFILL_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "infill.h"

/* How many of the COUNT pages from OFFSET on are in the cache, counted from the first. */
size_t cache_present(const struct infill_cache *cache, uint64_t offset, size_t count);

/* How many are not, counted from the first. */
size_t cache_absent(const struct infill_cache *cache, uint64_t offset, size_t count);

/* Write bytes of the image and set the bits.  LENGTH a multiple of 4096.  0 or -errno. */
int cache_put(struct infill_cache *cache, uint64_t offset, const void *data, size_t length);

#endif
