/* SPDX-License-Identifier: MIT */
/*
 * cache.h: one copy of an image in a memfd, for many clones (infill_cache).
 *
 * Pages are added only, and always with the image's content, so two threads
 * that add one page write the same bytes: no page is claimed and no lock is
 * taken.  A bit per page, set with release after the bytes are there, says
 * that UFFDIO_CONTINUE may map it.
 *
 * Both the content and the bits are in memfds.  A supervisor that keeps
 * cache_content_fd() and cache_bits_fd() can give them to another process,
 * which goes on by cache_adopt(); a page whose bit was not set yet is then
 * written once more.  VMMs get infill_cache_fd(), which is read-only, and no
 * one can change the size.
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

/*
 * Go on with a cache of IMAGE that another process made.  Both fds are
 * duplicated.  -EINVAL: their sizes are not those of a cache of this image.
 */
int cache_adopt(struct infill_cache **cache, struct infill_image *image, int content_fd,
		int bits_fd);

/* The writable memfds, for cache_adopt() elsewhere; owned by the cache. */
int cache_content_fd(const struct infill_cache *cache);
int cache_bits_fd(const struct infill_cache *cache);

#endif
