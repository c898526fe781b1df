// SPDX-License-Identifier: MIT
/*
 * fakekvm.c: a VM with KVM Userfault and a pager in another process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fakekvm.h"
#include "memfd.h"
#include "remote.h"

#define WORDS (FAKE_PAGE / sizeof(uint64_t))
#define GAP (1ull << 30) /* between regions' guest-physical addresses */

/* ---- memory ------------------------------------------------------------------------ */

static int sealed_memfd(const char *name, uint64_t bytes)
{
	int fd = memfd_make(name, bytes);

	if (fd < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		fake_die(name);
	return fd;
}

/* WHERE: NULL, or what is to be mapped over. */
static void *map(void *where, int fd, uint64_t at, uint64_t bytes)
{
	int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | (where ? MAP_FIXED : 0);
	void *address = mmap(where, bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)at);

	if (address == MAP_FAILED)
		fake_die("mmap");
	return address;
}

static void make_userfaultfd(struct fakekvm *k, const struct fakekvm_region *r)
{
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)r->hva, .len = r->length },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	k->uffd = infill_host_userfaultfd(0);
	if (k->uffd < 0 || ioctl(k->uffd, UFFDIO_REGISTER, &range))
		fake_die("userfaultfd");
}

/* Equal parts of the image, the first ones with a gap to the next. */
static void make_region(struct fakekvm *k, unsigned i, bool ordinary, uint64_t *bitmap_at)
{
	uint64_t part = k->image.bytes / k->regions / FAKE_PAGE * FAKE_PAGE;
	uint64_t bits;
	struct fakekvm_region *r = &k->region[i];

	*r = (struct fakekvm_region){
		.length = i + 1 < k->regions ? part : k->image.bytes - i * part,
		.offset = i * part, .gpa = i * GAP + i * part,
		.file = ordinary ? -1 : sealed_memfd("fakekvm-memory", k->image.bytes),
	};
	/* In the order of their numbers, which the bitmaps have then, too: wire_write(). */
	r->hva = map(k->reserved + r->offset, r->file, r->file < 0 ? 0 : r->offset, r->length);
	if (ordinary)
		make_userfaultfd(k, r);
	bits = wire_bitmap_bytes(r->length, FAKE_PAGE);
	r->bitmap = map(NULL, k->bitmap_fd, *bitmap_at, bits);
	memset((void *)(uintptr_t)r->bitmap, 0xff, bits);
	*bitmap_at += bits;
}

struct fakekvm *fakekvm_new(const struct fakekvm_options *options)
{
	struct fakekvm *k = calloc(1, sizeof(*k));
	uint64_t at = 0;

	if (!k)
		fake_die("calloc");
	k->image = *options->image;
	k->regions = options->regions ? options->regions : 1;
	k->threads = options->threads ? options->threads : 1;
	k->pages = k->image.bytes / FAKE_PAGE;
	k->version = calloc(k->pages, sizeof(*k->version));
	k->uffd = -1;
	k->protected = options->protected;
	k->reserved = map(NULL, -1, 0, k->image.bytes);
	k->bitmap_fd = sealed_memfd("fakekvm-bitmap", k->regions * FAKE_PAGE +
				    wire_bitmap_bytes(k->image.bytes, FAKE_PAGE));
	for (unsigned i = 0; i < k->regions; i++)
		make_region(k, i, options->ordinary && i + 1 == k->regions, &at);
	for (unsigned i = 0; i < FAKEKVM_LOCKS; i++)
		pthread_mutex_init(&k->lock[i], NULL);
	return k;
}

void fakekvm_free(struct fakekvm *k)
{
	if (k->remote)
		remote_shutdown(k->remote);
	remote_free(k->remote);
	for (unsigned i = 0; i < k->regions; i++) {
		const struct fakekvm_region *r = &k->region[i];

		munmap((void *)(uintptr_t)r->bitmap, wire_bitmap_bytes(r->length, FAKE_PAGE));
		munmap(r->hva, r->length);
		if (r->file >= 0)
			close(r->file);
	}
	close(k->bitmap_fd);
	if (k->uffd >= 0)
		close(k->uffd);
	free(k->version);
	free(k);
}

int fakekvm_connect(struct fakekvm *k, const char *socket)
{
	struct infill_memory *memory;
	int rc = infill_memory_new(&memory);

	for (unsigned i = 0; i < k->regions && !rc; i++) {
		const struct fakekvm_region *r = &k->region[i];
		const struct infill_region region = {
			.size = sizeof(region), .gpa = r->gpa, .hva = (uintptr_t)r->hva,
			.length = r->length, .offset = r->offset,
			.backing = r->file < 0 ? INFILL_BACKING_ANON : INFILL_BACKING_GUEST_MEMFD,
			.guest_memfd = r->file,
			.guest_memfd_offset = r->file < 0 ? 0 : r->offset,
		};

		rc = infill_memory_add(memory, &region);
	}
	if (!rc)
		rc = remote_connect(&k->remote, socket, memory, k->bitmap_fd, k->uffd, k->protected,
				    k->threads);
	infill_memory_free(memory);
	return rc;
}

/* ---- vCPUs ------------------------------------------------------------------------- */

static const struct fakekvm_region *region_of(const struct fakekvm *k, uint64_t page,
					      uint64_t *number)
{
	const struct fakekvm_region *r = k->region;

	while (page * FAKE_PAGE - r->offset >= r->length)
		r++;
	*number = page - r->offset / FAKE_PAGE;
	return r;
}

static bool is_missing(const struct fakekvm_region *r, uint64_t number)
{
	return atomic_load_explicit(&r->bitmap[number / 64], memory_order_acquire) >> number % 64 & 1;
}

uint64_t fakekvm_missing(const struct fakekvm *k)
{
	uint64_t missing = 0, number;

	for (uint64_t page = 0; page < k->pages; page++) {
		const struct fakekvm_region *r = region_of(k, page, &number);

		missing += is_missing(r, number);
	}
	return missing;
}

uint64_t fakekvm_memory_bytes(const struct fakekvm *k)
{
	uint64_t bytes = 0;
	struct stat st;

	for (unsigned i = 0; i < k->regions; i++) {
		if (k->region[i].file < 0)
			continue;
		if (fstat(k->region[i].file, &st))
			fake_die("fstat");
		bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes;
}

/* What word I of a page with this version must be. */
static uint64_t expected(const struct fakekvm *k, uint64_t page, unsigned i)
{
	uint32_t version = k->version[page];

	if (!version)
		return fakeimage_word(&k->image, page * FAKE_PAGE + i * sizeof(uint64_t));
	if (version == FAKEKVM_ZERO)
		return 0;
	return fake_mix(page << 32 | (uint64_t)version << 12 | i);
}

/* Under the page's lock. */
static int check(struct fakekvm *k, const uint64_t *word, uint64_t page)
{
	for (unsigned i = 0; i < WORDS; i++) {
		if (word[i] == expected(k, page, i))
			continue;
		snprintf(k->wrong, sizeof(k->wrong), "page %llu, version %u, word %u: 0x%llx, not 0x%llx",
			 (unsigned long long)page, k->version[page], i, (unsigned long long)word[i],
			 (unsigned long long)expected(k, page, i));
		return -EUCLEAN;
	}
	return 0;
}

static void write_page(struct fakekvm *k, uint64_t *word, uint64_t page)
{
	k->version[page] = k->version[page] ? k->version[page] + 1 : 2;
	for (unsigned i = 0; i < WORDS; i++)
		word[i] = expected(k, page, i);
}

/* The page was asked for, and this is what the pager said of it. */
static int judge(struct fakekvm *k, uint64_t page, int rc)
{
	if (rc == -EHWPOISON && k->version[page] == FAKEKVM_POISONED)
		return 0;
	if (rc == -EHWPOISON || (!rc && k->version[page] == FAKEKVM_POISONED)) {
		snprintf(k->wrong, sizeof(k->wrong), "page %llu: is %spoisoned",
			 (unsigned long long)page, rc ? "" : "not ");
		return -EUCLEAN;
	}
	return rc;
}

/* The answer for page NUMBER of R: it says that the page is there, and nothing that is not. */
static bool answer_holds(struct fakekvm *k, const struct fakekvm_region *r, uint64_t number,
			 uint64_t gpa, uint64_t bytes)
{
	uint64_t first = (gpa - r->gpa) / FAKE_PAGE, count = bytes / FAKE_PAGE;

	if (gpa < r->gpa || number - first >= count || (first + count) * FAKE_PAGE > r->length)
		return false;
	for (uint64_t i = 0; i < count; i++)
		if (is_missing(r, first + i))
			return false;
	k->told += count;
	return true;
}

int fakekvm_touch(struct fakekvm *k, unsigned thread, uint64_t page, bool write)
{
	uint64_t number, first, bytes;
	const struct fakekvm_region *r = region_of(k, page, &number);
	uint64_t *word = (uint64_t *)(r->hva + number * FAKE_PAGE);
	int rc = 0;

	while (is_missing(r, number)) {
		k->exits++;
		rc = remote_ask(k->remote, 1 + thread, r->gpa + number * FAKE_PAGE, NULL, &first, &bytes);
		if (rc || k->version[page] == FAKEKVM_POISONED)
			return judge(k, page, rc);
		if (!answer_holds(k, r, number, first, bytes)) {
			snprintf(k->wrong, sizeof(k->wrong),
				 "page %llu: an answer, but not for it, or for more than is there",
				 (unsigned long long)page);
			return -EUCLEAN;
		}
	}
	pthread_mutex_lock(&k->lock[page % FAKEKVM_LOCKS]);
	rc = check(k, word, page);
	if (!rc && write)
		write_page(k, word, page);
	pthread_mutex_unlock(&k->lock[page % FAKEKVM_LOCKS]);
	k->touches++;
	return rc;
}

/* As userfault_drop() and userfault_clear(). */
static void drop(struct fakekvm *k, const struct fakekvm_region *r, uint64_t page, uint64_t number,
		 uint64_t count)
{
	char *target = r->hva + number * FAKE_PAGE;

	if (madvise(target, count * FAKE_PAGE, r->file < 0 ? MADV_DONTNEED : MADV_REMOVE))
		fake_die("madvise");
	for (uint64_t i = 0; i < count; i++) {
		k->version[page + i] = FAKEKVM_ZERO;
		atomic_fetch_and_explicit(&r->bitmap[(number + i) / 64],
					  ~(1ull << (number + i) % 64), memory_order_release);
	}
}

int fakekvm_discard(struct fakekvm *k, uint64_t page, uint64_t count)
{
	uint64_t number;
	const struct fakekvm_region *r = region_of(k, page, &number);
	int rc;

	/* What vCPUs write meanwhile may be lost: have them write before or behind it. */
	for (unsigned i = 0; i < FAKEKVM_LOCKS; i++)
		pthread_mutex_lock(&k->lock[i]);
	rc = remote_discard(k->remote, r->gpa + number * FAKE_PAGE, count * FAKE_PAGE);
	if (!rc)
		drop(k, r, page, number, count);
	for (unsigned i = 0; i < FAKEKVM_LOCKS; i++)
		pthread_mutex_unlock(&k->lock[i]);
	return rc;
}

int fakekvm_look(struct fakekvm *k)
{
	unsigned char there;
	uint64_t number;

	for (uint64_t page = 0; page < k->pages; page++) {
		const struct fakekvm_region *r = region_of(k, page, &number);

		if (r->file >= 0 || is_missing(r, number))
			continue;
		if (mincore(r->hva + number * FAKE_PAGE, FAKE_PAGE, &there))
			fake_die("mincore");
		if (there & 1)
			continue;
		snprintf(k->wrong, sizeof(k->wrong), "page %llu: its bit is clear, and it is not there",
			 (unsigned long long)page);
		return -EUCLEAN;
	}
	return 0;
}

int fakekvm_verify(struct fakekvm *k)
{
	int rc = 0;

	for (uint64_t page = 0; page < k->pages && !rc; page++)
		rc = fakekvm_touch(k, 0, page, false);
	return rc;
}

/* ---- a load ------------------------------------------------------------------------ */

struct vcpu {
	struct fakekvm *k;
	unsigned number;
};

static void *run(void *arg)
{
	struct vcpu *v = arg;
	struct fakekvm *k = v->k;
	uint64_t random = fake_mix(v->number + 1);
	int rc = 0, none = 0;

	for (uint64_t n = 0; !rc && !k->stop; n++) {
		random = fake_mix(random);
		rc = fakekvm_touch(k, v->number, random % k->pages,
				   k->write_every && n % k->write_every == 0);
	}
	if (rc)
		atomic_compare_exchange_strong(&k->error, &none, rc);
	free(v);
	return NULL;
}

void fakekvm_start(struct fakekvm *k, unsigned write_every)
{
	k->stop = false;
	k->error = 0;
	k->write_every = write_every;
	for (k->running = 0; k->running < k->threads; k->running++) {
		struct vcpu *v = calloc(1, sizeof(*v));

		if (!v)
			fake_die("calloc");
		*v = (struct vcpu){ k, k->running };
		if (pthread_create(&k->thread[k->running], NULL, run, v))
			fake_die("pthread_create");
	}
}

int fakekvm_join(struct fakekvm *k)
{
	while (k->running)
		pthread_join(k->thread[--k->running], NULL);
	return k->error;
}

int fakekvm_finish(struct fakekvm *k)
{
	k->stop = true;
	return fakekvm_join(k);
}
