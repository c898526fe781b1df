/* SPDX-License-Identifier: MIT */
/*
 * pagemap_test.c: page states: which moves are allowed, what survives the
 * process, what a damaged file does.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory.h"
#include "pagemap.h"

#define BASE 0x7f0000000000u

static const struct infill_identity IMAGE = { .bytes = 64 << 20, .inode = 7, .mtime_sec = 3 };

/* Two regions: 1000 small pages, then 4 huge ones behind a gap. */
static struct infill_memory two_regions(void)
{
	struct infill_memory m = { .count = 2 };

	m.region[0] = (struct infill_region){ .hva = BASE, .length = 1000 * 4096, .page_size = 4096 };
	m.region[1] = (struct infill_region){
		.hva = BASE + (1u << 30),
		.length = 8u << 20,
		.offset = 4096000,
		.page_size = 2u << 20,
		.backing = INFILL_BACKING_HUGETLB,
	};
	return m;
}

static int new_file(void)
{
	int fd = memfd_create("pagemap_test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static int open_on(struct pagemap *pm, int fd, bool *resumed)
{
	struct infill_memory m = two_regions();

	return pagemap_open(pm, fd, &m, &IMAGE, 16, resumed);
}

/* A page in state FROM, by the shortest way there. */
static void bring_to(struct pagemap *pm, uint64_t page, enum page_state from)
{
	static const enum page_state way[PAGE_STATES][3] = {
		[PAGE_FILLING] = { PAGE_FILLING },
		[PAGE_PRESENT] = { PAGE_FILLING, PAGE_PRESENT },
		[PAGE_REMOVED] = { PAGE_REMOVED },
		[PAGE_POISONED] = { PAGE_FILLING, PAGE_POISONED },
	};

	for (int i = 0; i < 3 && way[from][i] != PAGE_MISSING; i++)
		assert_int_equal(pagemap_move(pm, page, 1, way[from][i]), 0);
	assert_int_equal(pagemap_get(pm, page), from);
}

static void moves_are_checked(void **state)
{
	static const bool allowed[PAGE_STATES][PAGE_STATES] = {
		[PAGE_MISSING] = { [PAGE_FILLING] = true, [PAGE_REMOVED] = true },
		[PAGE_FILLING] = { [PAGE_MISSING] = true, [PAGE_PRESENT] = true,
				   [PAGE_REMOVED] = true, [PAGE_POISONED] = true },
		[PAGE_PRESENT] = { [PAGE_REMOVED] = true },
		[PAGE_REMOVED] = { [PAGE_REMOVED] = true },
		[PAGE_POISONED] = { [PAGE_REMOVED] = true },
	};
	struct pagemap pm;
	uint64_t page = 0;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	for (int from = 0; from < PAGE_STATES; from++)
		for (int to = 0; to < PAGE_STATES; to++, page++) {
			bring_to(&pm, page, from);
			assert_int_equal(pagemap_move(&pm, page, 1, to),
					 allowed[from][to] ? 0 : -EPROTO);
			assert_int_equal(pagemap_get(&pm, page), allowed[from][to] ? to : from);
		}
	pagemap_close(&pm);
	close(fd);
}

static void a_claim_ends_before_the_first_page_that_is_not_missing(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	for (int s = PAGE_FILLING; s < PAGE_STATES; s++) {
		uint64_t page = 10 * (uint64_t)s;

		bring_to(&pm, page + 5, s);
		assert_int_equal(pagemap_claim(&pm, page, 10), 5);
		assert_int_equal(pagemap_run(&pm, page, 10, PAGE_FILLING), s == PAGE_FILLING ? 6 : 5);
		assert_int_equal(pagemap_get(&pm, page + 5), s);
		assert_int_equal(pagemap_claim(&pm, page, 10), 0);
	}
	assert_int_equal(pagemap_missing(&pm), 1004 - 3);
	pagemap_close(&pm);
	close(fd);
}

#define CLAIMERS 4

struct claimer {
	struct pagemap *pm;
	uint64_t got;
};

/* Claim all that is left, in runs of several lengths, and settle it. */
static void *claim_all(void *arg)
{
	struct claimer *c = arg;

	for (uint64_t page = 0; page < 1000;) {
		uint64_t most = 1000 - page < 7 ? 1000 - page : page % 7 + 1;
		uint64_t n = pagemap_claim(c->pm, page, most);

		if (n && pagemap_move(c->pm, page, n, PAGE_PRESENT))
			break;
		c->got += n;
		page += n ? n : 1;
	}
	return NULL;
}

static void a_page_is_claimed_by_one_thread(void **state)
{
	struct claimer claimer[CLAIMERS];
	pthread_t thread[CLAIMERS];
	struct pagemap pm;
	uint64_t got = 0;
	bool resumed;

	(void)state;
	for (int round = 0; round < 20; round++) {
		int fd = new_file();

		assert_int_equal(open_on(&pm, fd, &resumed), 0);
		for (int i = 0; i < CLAIMERS; i++) {
			claimer[i] = (struct claimer){ .pm = &pm };
			assert_int_equal(pthread_create(&thread[i], NULL, claim_all, &claimer[i]), 0);
		}
		for (int i = 0; i < CLAIMERS; i++) {
			assert_int_equal(pthread_join(thread[i], NULL), 0);
			got += claimer[i].got;
		}
		assert_int_equal(pagemap_run(&pm, 0, 1000, PAGE_PRESENT), 1000);
		assert_int_equal(pagemap_missing(&pm), 4);
		assert_false(pagemap_settled(&pm));
		assert_int_equal(pagemap_claim(&pm, 1000, 4), 4);
		assert_false(pagemap_settled(&pm));
		assert_int_equal(pagemap_move(&pm, 1000, 4, PAGE_REMOVED), 0);
		assert_true(pagemap_settled(&pm));
		pagemap_close(&pm);
		close(fd);
	}
	assert_int_equal(got, 20 * 1000);
}

static void a_run_moves_whole_or_not_at_all(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	bring_to(&pm, 5, PAGE_PRESENT);
	assert_int_equal(pagemap_move(&pm, 0, 10, PAGE_FILLING), -EPROTO);
	for (uint64_t p = 0; p < 10; p++)
		assert_int_equal(pagemap_get(&pm, p), p == 5 ? PAGE_PRESENT : PAGE_MISSING);
	pagemap_close(&pm);
	close(fd);
}

static void missing_pages_are_counted(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	assert_int_equal(pm.missing, 1004);
	bring_to(&pm, 0, PAGE_PRESENT);
	bring_to(&pm, 1, PAGE_REMOVED);
	bring_to(&pm, 2, PAGE_FILLING);
	bring_to(&pm, 3, PAGE_POISONED);
	assert_int_equal(pm.missing, 1001);
	pagemap_move(&pm, 0, 1, PAGE_REMOVED);
	assert_int_equal(pm.missing, 1001);
	pagemap_close(&pm);
	close(fd);
}

static void states_outlive_the_mapping(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	assert_false(resumed);
	bring_to(&pm, 10, PAGE_PRESENT);
	bring_to(&pm, 11, PAGE_REMOVED);
	bring_to(&pm, 12, PAGE_FILLING);
	bring_to(&pm, 1003, PAGE_POISONED);
	pm.events[3].event = UFFD_EVENT_REMOVE;
	pagemap_close(&pm);

	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	assert_true(resumed);
	assert_int_equal(pagemap_get(&pm, 10), PAGE_PRESENT);
	assert_int_equal(pagemap_get(&pm, 11), PAGE_REMOVED);
	assert_int_equal(pagemap_get(&pm, 12), PAGE_MISSING); /* its ioctl may not have been */
	assert_int_equal(pagemap_get(&pm, 1003), PAGE_POISONED);
	assert_int_equal(pm.events[3].event, UFFD_EVENT_REMOVE);
	assert_int_equal(pm.missing, 1001);
	pagemap_close(&pm);
	close(fd);
}

static void a_setup_that_was_cut_short_starts_anew(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	bring_to(&pm, 1, PAGE_PRESENT);
	atomic_store(&pm.header->ready, 0);
	pagemap_close(&pm);
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	assert_false(resumed);
	assert_int_equal(pagemap_get(&pm, 1), PAGE_MISSING);
	pagemap_close(&pm);
	close(fd);
}

static void set_magic(struct pagemap_header *h) { h->magic[0] ^= 1; }
static void set_layout(struct pagemap_header *h) { h->layout++; }
static void set_bytes(struct pagemap_header *h) { h->bytes += 4096; }
static void set_no_regions(struct pagemap_header *h) { h->regions = 0; }
static void set_many_regions(struct pagemap_header *h) { h->regions = 65; }
static void set_pages(struct pagemap_header *h) { h->pages += 1u << 20; }
static void set_region_pages(struct pagemap_header *h) { h->region[0].pages++; }
static void set_page_size(struct pagemap_header *h) { h->region[0].page_size = 0; }
static void set_states_at(struct pagemap_header *h) { h->states_at += 1u << 30; }
static void set_capacity(struct pagemap_header *h) { h->record_capacity = UINT64_MAX / 4; }

static void damage_is_noticed(void **state)
{
	static void (*const damage[])(struct pagemap_header *) = {
		set_magic, set_layout, set_bytes, set_no_regions, set_many_regions,
		set_pages, set_region_pages, set_page_size, set_states_at, set_capacity,
	};

	(void)state;
	for (size_t i = 0; i < sizeof(damage) / sizeof(*damage); i++) {
		struct pagemap_header h;
		struct pagemap pm;
		bool resumed;
		int fd = new_file();

		assert_int_equal(open_on(&pm, fd, &resumed), 0);
		pagemap_close(&pm);
		assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
		damage[i](&h);
		assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
		assert_int_equal(open_on(&pm, fd, &resumed), -EINVAL);
		assert_non_null(strstr(infill_error(), "damaged"));
		close(fd);
	}
}

static void another_vm_or_image_is_refused(void **state)
{
	struct infill_identity image = IMAGE;
	struct infill_memory m = two_regions();
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	pagemap_close(&pm);
	m.region[1].hva += 2u << 20;
	assert_int_equal(pagemap_open(&pm, fd, &m, &IMAGE, 16, &resumed), -EINVAL);
	image.mtime_nsec++;
	assert_int_equal(pagemap_open(&pm, fd, NULL, &image, 16, &resumed), -ESTALE);
	close(fd);
	fd = new_file();
	assert_int_equal(pagemap_open(&pm, fd, NULL, &IMAGE, 16, &resumed), -EINVAL);
	close(fd);
}

static void addresses_are_found(void **state)
{
	static const struct {
		uint64_t hva;
		int64_t page; /* -1: in no region */
	} table[] = {
		{ BASE, 0 },
		{ BASE + 4095, 0 },
		{ BASE + 999 * 4096, 999 },
		{ BASE + 1000 * 4096, -1 },
		{ BASE - 1, -1 },
		{ BASE + (1u << 30), 1000 },
		{ BASE + (1u << 30) + (2u << 20), 1001 },
		{ BASE + (1u << 30) + (8u << 20) - 1, 1003 },
		{ BASE + (1u << 30) + (8u << 20), -1 },
		{ 0, -1 },
		{ UINT64_MAX, -1 },
	};
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		uint64_t page = UINT64_MAX;
		const struct pagemap_region *r = pagemap_find(&pm, table[i].hva, &page);

		assert_int_equal(r ? (int64_t)page : -1, table[i].page);
		if (r)
			assert_ptr_equal(r, pagemap_region(&pm, page));
	}
	assert_null(pagemap_region(&pm, 1004));
	pagemap_close(&pm);
	close(fd);
}

static void image_offsets_are_found(void **state)
{
	struct pagemap pm;
	uint64_t page;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	assert_non_null(pagemap_at(&pm, 4096, &page));
	assert_int_equal(page, 1);
	assert_non_null(pagemap_at(&pm, 4096000 + (3u << 20), &page));
	assert_int_equal(page, 1001);
	assert_null(pagemap_at(&pm, 4096000 + (8u << 20), &page));
	pagemap_close(&pm);
	close(fd);
}

/* Against the plain loop, for every start and length around word borders. */
static void next_finds_what_a_loop_finds(void **state)
{
	static const uint8_t pattern[] = { 0, 2, 2, 0, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0,
					   4, 4, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 0, 0, 2, 2, 2 };
	_Atomic uint8_t bytes[sizeof(pattern)];
	struct pagemap pm = { .state = bytes };

	(void)state;
	for (size_t i = 0; i < sizeof(pattern); i++)
		bytes[i] = pattern[i];
	for (uint64_t from = 0; from <= sizeof(pattern); from++)
		for (uint64_t end = from; end <= sizeof(pattern); end++)
			for (int want = 0; want < PAGE_STATES; want++) {
				uint64_t expect = from;

				while (expect < end && pattern[expect] != want)
					expect++;
				assert_int_equal(pagemap_next(&pm, from, end, want), expect);
			}
}

static void runs_are_measured(void **state)
{
	struct pagemap pm;
	bool resumed;
	int fd = new_file();

	(void)state;
	assert_int_equal(open_on(&pm, fd, &resumed), 0);
	bring_to(&pm, 4, PAGE_PRESENT);
	assert_int_equal(pagemap_run(&pm, 0, 10, PAGE_MISSING), 4);
	assert_int_equal(pagemap_run(&pm, 0, 3, PAGE_MISSING), 3);
	assert_int_equal(pagemap_run(&pm, 4, 10, PAGE_MISSING), 0);
	assert_int_equal(pagemap_run(&pm, 4, 10, PAGE_PRESENT), 1);
	pagemap_close(&pm);
	close(fd);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(moves_are_checked),
		cmocka_unit_test(a_claim_ends_before_the_first_page_that_is_not_missing),
		cmocka_unit_test(a_page_is_claimed_by_one_thread),
		cmocka_unit_test(a_run_moves_whole_or_not_at_all),
		cmocka_unit_test(missing_pages_are_counted),
		cmocka_unit_test(states_outlive_the_mapping),
		cmocka_unit_test(a_setup_that_was_cut_short_starts_anew),
		cmocka_unit_test(damage_is_noticed),
		cmocka_unit_test(another_vm_or_image_is_refused),
		cmocka_unit_test(addresses_are_found),
		cmocka_unit_test(image_offsets_are_found),
		cmocka_unit_test(next_finds_what_a_loop_finds),
		cmocka_unit_test(runs_are_measured),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("pagemap", tests, NULL, NULL);
}
