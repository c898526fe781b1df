/* SPDX-License-Identifier: MIT */
/*
 * guest.h: guest memory as a VMM would map it, and its userfaultfd for the
 * contenders that are not infill.
 */
#ifndef BENCH_GUEST_H
#define BENCH_GUEST_H

#include <stddef.h>
#include <stdint.h>

enum backing {
	BACKING_ANON,    /* 4 KiB pages, private anonymous, no transparent huge pages */
	BACKING_SHMEM,   /* 4 KiB pages, memfd, shared */
	BACKING_MINOR,   /* 4 KiB pages, private mapping of a memfd that has the content */
	BACKING_HUGETLB, /* 2 MiB pages, private anonymous */
	BACKINGS
};

struct guest {
	uint8_t *base;
	size_t bytes;
	size_t page; /* granule */
	enum backing backing;
};

/*
 * Map fresh guest memory.  CACHE_FD: the memfd with the content, for
 * BACKING_MINOR only.  fail() if it cannot be mapped.
 */
void guest_map(struct guest *g, enum backing backing, size_t bytes, int cache_fd);
void guest_unmap(struct guest *g);

/* A userfaultfd on which all of G is registered; fail() if that is not possible. */
int guest_register(const struct guest *g);

/* A memfd that holds the BYTES at CONTENT. */
int guest_cache(const uint8_t *content, size_t bytes);

#endif
