/* SPDX-License-Identifier: MIT */
/*
 * content.h: what guest memory is restored from: an image file whose every
 * 4 KiB page is different and not zero, and the same bytes in warm anonymous
 * memory for the contenders that measure the limit.
 */
#ifndef BENCH_CONTENT_H
#define BENCH_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONTENT_PAGE 4096u
#define CONTENT_HUGE (2u << 20)

struct content {
	char path[512];  /* the image file */
	size_t bytes;    /* its size, a multiple of 2 MiB */
	uint8_t *buffer; /* the same bytes in 4 KiB anonymous pages, or NULL */
	uint8_t *huge;   /* and in transparent huge pages, or NULL */
};

/* The first 8 bytes of page number PAGE. */
static inline uint64_t content_word(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull | 1;
}

/* Make the image of BYTES in the folder DIR, or use the one that is there; fill the buffers. */
void content_make(struct content *c, const char *dir, size_t bytes, bool buffers);

/* An empty image of BYTES, all hole but for its first and last 2 MiB. */
void content_sparse(char *path, size_t size, const char *dir, size_t bytes);

/* Bring the image into the page cache. */
void content_warm(const struct content *c);

/*
 * Drop the image from the page cache.  False if some of it stays there: the
 * file system keeps it, or somebody has it mapped.
 */
bool content_drop(const struct content *c);

/* The whole image, mapped privately and read-only; fail() if that is not possible. */
uint8_t *content_map(const struct content *c, int flags);

void content_free(struct content *c);

#endif
