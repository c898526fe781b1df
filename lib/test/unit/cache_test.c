/* SPDX-License-Identifier: MIT */
/*
 * cache_test.c: the cache's pages and bits, what a client may do with its
 * descriptor, and how another process goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "cache.h"
#include "infill.h"
#include "scratch.h"

#define PAGE 4096ull
#define PAGES 300u

static struct infill_image *image_new(const char *name, unsigned pages)
{
	const char *path = scratch_file(name, "", 0);
	struct infill_image *image;

	assert_int_equal(truncate(path, (off_t)(pages * PAGE)), 0);
	if (infill_image_open(&image, path, NULL))
		fail_msg("%s", infill_error());
	return image;
}

static struct infill_cache *cache_new(unsigned pages)
{
	struct infill_image *image = image_new("image", pages);
	struct infill_cache *cache;

	if (infill_cache_new(&cache, image))
		fail_msg("%s", infill_error());
	infill_image_close(image); /* its size is all that is needed */
	return cache;
}

static void put(struct infill_cache *cache, unsigned page, unsigned count)
{
	static unsigned char data[PAGES * PAGE];

	for (unsigned i = 0; i < count; i++)
		memset(data + i * PAGE, (int)(page + i) % 255 + 1, PAGE);
	assert_int_equal(cache_put(cache, page * PAGE, data, count * PAGE), 0);
}

static void a_new_cache_is_empty(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);
	struct stat st;

	(void)state;
	assert_int_equal(infill_cache_bytes(cache), 0);
	assert_int_equal(cache_present(cache, 0, PAGES), 0);
	assert_int_equal(cache_absent(cache, 0, PAGES), PAGES);
	assert_int_equal(fstat(infill_cache_fd(cache), &st), 0);
	assert_int_equal(st.st_size, PAGES * PAGE);
	assert_int_equal(st.st_blocks, 0);
	infill_cache_free(cache);
	infill_cache_free(NULL);
}

static void runs_are_counted_from_the_first_page(void **state)
{
	/* present: 10, 60 to 199, 299 */
	static const struct {
		unsigned page, count, present, absent;
	} table[] = {
		{ 0, 300, 0, 10 },   { 10, 300, 1, 0 },	  { 11, 300, 0, 49 },  { 60, 300, 140, 0 },
		{ 60, 7, 7, 0 },     { 63, 2, 2, 0 },	  { 64, 64, 64, 0 },   { 199, 5, 1, 0 },
		{ 200, 300, 0, 99 }, { 200, 30, 0, 30 },  { 299, 300, 1, 0 },  { 300, 1, 0, 0 },
		{ 0, 0, 0, 0 },	     { 5000, 10, 0, 0 },
	};
	struct infill_cache *cache = cache_new(PAGES);

	(void)state;
	put(cache, 10, 1);
	put(cache, 60, 140);
	put(cache, 299, 1);
	for (size_t i = 0; i < COUNT(table); i++) {
		uint64_t offset = table[i].page * PAGE;

		assert_int_equal(cache_present(cache, offset, table[i].count), table[i].present);
		assert_int_equal(cache_absent(cache, offset, table[i].count), table[i].absent);
	}
	assert_int_equal(cache_present(cache, 60 * PAGE, SIZE_MAX), 140);
	assert_int_equal(infill_cache_bytes(cache), 142 * PAGE);
	infill_cache_free(cache);
}

static void a_page_that_is_put_twice_counts_once(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);

	(void)state;
	put(cache, 0, 64);
	put(cache, 32, 64);
	assert_int_equal(infill_cache_bytes(cache), 96 * PAGE);
	infill_cache_free(cache);
}

static void put_refuses_what_is_not_of_the_image(void **state)
{
	static const struct {
		uint64_t offset;
		size_t length;
		int code;
	} table[] = {
		{ 1, PAGE, -EINVAL },
		{ 0, 100, -EINVAL },
		{ PAGES * PAGE, PAGE, -ERANGE },
		{ (PAGES - 1) * PAGE, 2 * PAGE, -ERANGE },
		{ UINT64_MAX - PAGE + 1, PAGE, -ERANGE },
	};
	struct infill_cache *cache = cache_new(PAGES);
	char data[2 * PAGE];

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(cache_put(cache, table[i].offset, data, table[i].length),
				 table[i].code);
	assert_int_equal(infill_cache_bytes(cache), 0);
	infill_cache_free(cache);
}

static void clients_see_what_was_put(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);
	unsigned char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				 infill_cache_fd(cache), 0);

	(void)state;
	assert_ptr_not_equal(at, MAP_FAILED);
	put(cache, 5, 3);
	for (unsigned page = 5; page < 8; page++) {
		assert_int_equal(at[page * PAGE], page + 1);
		assert_int_equal(at[page * PAGE + PAGE - 1], page + 1);
	}
	assert_int_equal(at[8 * PAGE], 0);
	munmap(at, PAGES * PAGE);
	infill_cache_free(cache);
}

static void clients_cannot_change_it(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);
	int fd = infill_cache_fd(cache);

	(void)state;
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_ptr_equal(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(ftruncate(fd, 0), -1);
	/* Nor can the pager itself change the size. */
	assert_int_equal(ftruncate(cache_content_fd(cache), 0), -1);
	assert_int_equal(ftruncate(cache_content_fd(cache), 1ll << 40), -1);
	assert_int_equal(ftruncate(cache_bits_fd(cache), 0), -1);
	infill_cache_free(cache);
}

static void another_user_cannot_open_it_for_writing(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);
	bool root = !geteuid();
	char path[64];

	(void)state;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", infill_cache_fd(cache));
	if (root && seteuid(65534)) {
		infill_cache_free(cache);
		print_message("root may open everything, and cannot be left\n");
		skip();
	}
	assert_int_equal(open(path, O_RDWR | O_CLOEXEC), -1);
	if (root)
		assert_int_equal(seteuid(0), 0);
	infill_cache_free(cache);
}

static void another_process_goes_on(void **state)
{
	struct infill_image *image = image_new("adopt", PAGES);
	struct infill_cache *first, *second;
	unsigned fds = scratch_fds();
	unsigned char byte;

	(void)state;
	assert_int_equal(infill_cache_new(&first, image), 0);
	put(first, 7, 100);
	assert_int_equal(cache_adopt(&second, image, cache_content_fd(first),
				     cache_bits_fd(first)), 0);
	infill_cache_free(first);
	assert_int_equal(infill_cache_bytes(second), 100 * PAGE);
	assert_int_equal(cache_present(second, 7 * PAGE, PAGES), 100);
	put(second, 107, 1);
	assert_int_equal(cache_present(second, 7 * PAGE, PAGES), 101);
	assert_int_equal(pread(infill_cache_fd(second), &byte, 1, 7 * PAGE), 1);
	assert_int_equal(byte, 8);
	infill_cache_free(second);
	assert_int_equal(scratch_fds(), fds);
	infill_image_close(image);
}

static void the_cache_of_another_image_is_refused(void **state)
{
	struct infill_image *image = image_new("first", PAGES);
	struct infill_image *larger = image_new("second", PAGES + 1); /* as many words of bits */
	struct infill_image *large = image_new("third", 40000);
	struct infill_cache *cache, *adopted;
	unsigned fds;
	int content, bits;

	(void)state;
	assert_int_equal(infill_cache_new(&cache, image), 0);
	content = cache_content_fd(cache);
	bits = cache_bits_fd(cache);
	fds = scratch_fds();
	assert_int_equal(cache_adopt(&adopted, larger, content, bits), -EINVAL);
	assert_int_equal(cache_adopt(&adopted, large, content, bits), -EINVAL);
	assert_int_equal(cache_adopt(&adopted, image, bits, content), -EINVAL);
	assert_int_equal(cache_adopt(&adopted, image, content, content), -EINVAL);
	assert_int_equal(cache_adopt(&adopted, image, content, -1), -EBADF);
	assert_null(adopted);
	assert_int_equal(scratch_fds(), fds);
	infill_cache_free(cache);
	infill_image_close(image);
	infill_image_close(larger);
	infill_image_close(large);
}

static void *put_all(void *arg)
{
	for (unsigned page = 0; page + 3 <= PAGES; page++) {
		char data[3 * PAGE];

		for (unsigned i = 0; i < 3; i++)
			memset(data + i * PAGE, (int)(page + i) % 255 + 1, PAGE);
		if (cache_put(arg, page * PAGE, data, sizeof(data)))
			return arg;
	}
	return NULL;
}

static void a_bit_that_is_seen_stands_for_a_whole_page(void **state)
{
	struct infill_cache *cache = cache_new(PAGES);
	pthread_t thread[2];

	(void)state;
	for (size_t i = 0; i < COUNT(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, put_all, cache), 0);
	alarm(60);
	for (size_t seen = 0; seen < PAGES;) {
		unsigned char data[PAGE];

		if (!cache_present(cache, seen * PAGE, 1))
			continue;
		assert_int_equal(pread(infill_cache_fd(cache), data, PAGE, (off_t)(seen * PAGE)),
				 PAGE);
		assert_int_equal(data[0], seen % 255 + 1);
		assert_int_equal(data[PAGE - 1], seen % 255 + 1);
		seen++;
	}
	alarm(0);
	for (size_t i = 0; i < COUNT(thread); i++) {
		void *failed;

		pthread_join(thread[i], &failed);
		assert_null(failed);
	}
	assert_int_equal(infill_cache_bytes(cache), PAGES * PAGE);
	infill_cache_free(cache);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_cache_is_empty),
		cmocka_unit_test(runs_are_counted_from_the_first_page),
		cmocka_unit_test(a_page_that_is_put_twice_counts_once),
		cmocka_unit_test(put_refuses_what_is_not_of_the_image),
		cmocka_unit_test(clients_see_what_was_put),
		cmocka_unit_test(clients_cannot_change_it),
		cmocka_unit_test(another_user_cannot_open_it_for_writing),
		cmocka_unit_test(another_process_goes_on),
		cmocka_unit_test(the_cache_of_another_image_is_refused),
		cmocka_unit_test(a_bit_that_is_seen_stands_for_a_whole_page),
	};

	return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
