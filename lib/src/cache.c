/* SPDX-License-Identifier: MIT */
/*
 * cache.c: a memfd with the pages of an image that some clone has needed, and
 * a bitmap of them.
 *
 * The bytes of a page are written before its bit is set with release, and a
 * reader loads the bits with acquire: a bit that is seen stands for a page
 * that is whole, in this process and in the next one.
 * Internal; the functions of infill.h are ABI.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "err.h"
#include "memfd.h"

#define PAGE 4096u
#define WORD 64u /* pages in a word of bits */

struct infill_cache {
	uint64_t pages;
	int content;   /* written here */
	int read_only; /* given to VMMs */
	int bits;
	_Atomic uint64_t *bit;
	size_t bit_bytes;
	_Atomic uint64_t present; /* number of bits set by or known to this process */
};

static size_t bit_bytes(uint64_t pages)
{
	uint64_t words = (pages + WORD - 1) / WORD;

	return (size_t)((words * sizeof(uint64_t) + PAGE - 1) & ~(uint64_t)(PAGE - 1));
}

static int cache_error(int code, const char *what)
{
	return err_set(code, "cache: cannot %s: %m", what);
}

static struct infill_cache *cache_alloc(uint64_t bytes)
{
	struct infill_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->pages = bytes / PAGE;
	c->bit_bytes = bit_bytes(c->pages);
	c->content = c->read_only = c->bits = -1;
	return c;
}

/* A client that cuts the file would kill all clones: nobody can, not even the pager. */
static int make_files(struct infill_cache *c)
{
	c->content = memfd_make("infill-cache", c->pages * PAGE);
	if (c->content < 0)
		return cache_error(c->content, "make a memfd");
	c->bits = memfd_make("infill-cache-bits", c->bit_bytes);
	if (c->bits < 0)
		return cache_error(c->bits, "make a memfd");
	if (fcntl(c->content, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) ||
	    fcntl(c->bits, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return cache_error(-errno, "seal a memfd");
	/* The file that a client gets can be opened again by its name in /proc. */
	if (fchmod(c->content, 0400) || fchmod(c->bits, 0400))
		return cache_error(-errno, "protect a memfd");
	return 0;
}

static int map_files(struct infill_cache *c)
{
	char path[32];
	void *at;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", c->content);
	c->read_only = open(path, O_RDONLY | O_CLOEXEC);
	if (c->read_only < 0)
		return cache_error(-errno, "open its memfd for reading (is /proc mounted?)");
	at = mmap(NULL, c->bit_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->bits, 0);
	if (at == MAP_FAILED)
		return cache_error(-errno, "map its bitmap");
	c->bit = at;
	return 0;
}

int infill_cache_new(struct infill_cache **cache, struct infill_image *image)
{
	struct infill_cache *c = cache_alloc(infill_image_bytes(image));
	int code;

	*cache = NULL;
	if (!c)
		return cache_error(-ENOMEM, "be made");
	code = make_files(c);
	if (!code)
		code = map_files(c);
	if (code)
		infill_cache_free(c);
	else
		*cache = c;
	return code;
}

static int verify_size(int fd, uint64_t bytes)
{
	struct stat st;

	if (fstat(fd, &st))
		return cache_error(-errno, "look at its memfd");
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
		return err_set(-EINVAL, "cache: is not one of this image: start without it");
	return 0;
}

static int take_files(struct infill_cache *c, int content, int bits)
{
	int code = verify_size(content, c->pages * PAGE);

	if (!code)
		code = verify_size(bits, c->bit_bytes);
	if (code)
		return code;
	c->content = fcntl(content, F_DUPFD_CLOEXEC, 3);
	c->bits = fcntl(bits, F_DUPFD_CLOEXEC, 3);
	if (c->content < 0 || c->bits < 0)
		return cache_error(-errno, "duplicate its memfd");
	return 0;
}

static uint64_t count_bits(const struct infill_cache *c)
{
	uint64_t count = 0;

	for (size_t i = 0; i < c->bit_bytes / sizeof(uint64_t); i++)
		count += (unsigned)__builtin_popcountll(atomic_load(&c->bit[i]));
	return count;
}

int cache_adopt(struct infill_cache **cache, struct infill_image *image, int content_fd,
		int bits_fd)
{
	struct infill_cache *c = cache_alloc(infill_image_bytes(image));
	int code;

	*cache = NULL;
	if (!c)
		return cache_error(-ENOMEM, "be adopted");
	code = take_files(c, content_fd, bits_fd);
	if (!code)
		code = map_files(c);
	if (code) {
		infill_cache_free(c);
		return code;
	}
	atomic_store(&c->present, count_bits(c));
	*cache = c;
	return 0;
}

int infill_cache_fd(const struct infill_cache *cache)
{
	return cache->read_only;
}

int cache_content_fd(const struct infill_cache *cache)
{
	return cache->content;
}

int cache_bits_fd(const struct infill_cache *cache)
{
	return cache->bits;
}

uint64_t infill_cache_bytes(const struct infill_cache *cache)
{
	return atomic_load_explicit(&cache->present, memory_order_relaxed) * PAGE;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void infill_cache_free(struct infill_cache *cache)
{
	if (!cache)
		return;
	if (cache->bit)
		munmap((void *)cache->bit, cache->bit_bytes);
	close_fd(cache->bits);
	close_fd(cache->read_only);
	close_fd(cache->content);
	free(cache);
}

/* Length of the run of pages from OFFSET on whose bit is BIT, COUNT at most. */
static size_t run_of(const struct infill_cache *c, uint64_t offset, size_t count, bool bit)
{
	uint64_t page = offset / PAGE, end, at = page;

	if (page >= c->pages)
		return 0;
	end = count < c->pages - page ? page + count : c->pages;
	while (at < end) {
		uint64_t word = atomic_load_explicit(&c->bit[at / WORD], memory_order_acquire);
		uint64_t other = (bit ? ~word : word) >> at % WORD;

		if (other) {
			at += (unsigned)__builtin_ctzll(other);
			break;
		}
		at += WORD - at % WORD;
	}
	return (size_t)((at < end ? at : end) - page);
}

size_t cache_present(const struct infill_cache *cache, uint64_t offset, size_t count)
{
	return run_of(cache, offset, count, true);
}

size_t cache_absent(const struct infill_cache *cache, uint64_t offset, size_t count)
{
	return run_of(cache, offset, count, false);
}

static int put_bytes(int fd, uint64_t offset, const char *data, size_t length)
{
	while (length) {
		ssize_t put = pwrite(fd, data, length, (off_t)offset);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put ? -errno : -EIO;
		data += put;
		offset += (size_t)put;
		length -= (size_t)put;
	}
	return 0;
}

static void put_bits(struct infill_cache *c, uint64_t page, uint64_t count)
{
	while (count) {
		uint64_t part = WORD - page % WORD, mask, old;

		if (part > count)
			part = count;
		mask = (~0ull >> (WORD - part)) << page % WORD;
		old = atomic_fetch_or_explicit(&c->bit[page / WORD], mask, memory_order_release);
		atomic_fetch_add_explicit(&c->present,
					  (unsigned)__builtin_popcountll(mask & ~old),
					  memory_order_relaxed);
		page += part;
		count -= part;
	}
}

int cache_put(struct infill_cache *cache, uint64_t offset, const void *data, size_t length)
{
	uint64_t bytes = cache->pages * PAGE;
	int code;

	if (offset % PAGE || length % PAGE)
		return err_set(-EINVAL, "cache: %zu bytes at %llu are not whole pages", length,
			       (unsigned long long)offset);
	if (offset > bytes || length > bytes - offset)
		return err_set(-ERANGE, "cache: %zu bytes at %llu reach past its end", length,
			       (unsigned long long)offset);
	code = put_bytes(cache->content, offset, data, length);
	if (code)
		return cache_error(code, "be written");
	put_bits(cache, offset / PAGE, length / PAGE);
	return 0;
}
