/* SPDX-License-Identifier: MIT */
/*
 * memory_test.c: which regions are taken and which refused, and mapping.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/mman.h>

#include "infill.h"
#include "memory.h"
#include "scratch.h"

#define K4 4096ull
#define M2 (2ull << 20)
#define HVA 0x7f0000000000ull

#define REGION(...) { .size = sizeof(struct infill_region), __VA_ARGS__ }

static struct infill_memory *memory_new(void)
{
	struct infill_memory *m;

	assert_int_equal(infill_memory_new(&m), 0);
	return m;
}

static void regions_are_sorted_by_hva(void **state)
{
	static const struct infill_region table[] = {
		REGION(.hva = HVA + 8 * K4, .gpa = 0, .length = 2 * K4, .offset = 0),
		REGION(.hva = HVA, .gpa = 1 << 20, .length = K4, .offset = 5 * K4),
		REGION(.hva = HVA + K4, .gpa = 2 << 20, .length = 7 * K4, .offset = 2 * K4),
	};
	struct infill_memory *m = memory_new();

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(infill_memory_add(m, &table[i]), 0);
	assert_int_equal(m->count, 3);
	assert_int_equal(m->region[0].hva, HVA);
	assert_int_equal(m->region[0].offset, 5 * K4);
	assert_int_equal(m->region[1].hva, HVA + K4);
	assert_int_equal(m->region[2].hva, HVA + 8 * K4);
	assert_int_equal(m->region[2].page_size, K4);
	assert_int_equal(infill_memory_bytes(m), 10 * K4);
	infill_memory_free(m);
	infill_memory_free(NULL);
}

static void bad_regions_are_refused(void **state)
{
	static const struct {
		struct infill_region region;
		const char *why;
	} table[] = {
		{ REGION(.hva = HVA), "is empty" },
		{ REGION(.hva = HVA, .length = K4, .page_size = 8192), "page_size must be" },
		{ REGION(.hva = HVA, .length = M2, .page_size = 1), "page_size must be" },
		{ REGION(.hva = HVA, .length = 1ull << 30, .page_size = 1ull << 30),
		  "page_size must be" },
		{ REGION(.hva = HVA, .length = M2, .backing = 4), "backing is not known" },
		{ REGION(.hva = HVA, .length = K4, .reserved_slot = 1), "reserved_slot must be 0" },
		{ REGION(.hva = HVA, .length = M2, .backing = INFILL_BACKING_HUGETLB),
		  "hugetlb memory needs" },
		{ REGION(.hva = HVA, .length = K4, .reserved = 1), "reserved is 1: it must be 0" },
		{ REGION(.hva = HVA, .length = K4 + 1), "length is not" },
		{ REGION(.hva = HVA, .length = M2 + K4, .page_size = M2), "length is not" },
		{ REGION(.hva = HVA + 512, .length = K4), "hva is not aligned" },
		{ REGION(.hva = HVA + K4, .length = M2, .page_size = M2), "hva is not aligned" },
		{ REGION(.hva = HVA, .gpa = 1, .length = K4), "gpa is not aligned" },
		{ REGION(.hva = HVA, .gpa = K4, .length = M2, .page_size = M2),
		  "gpa is not aligned" },
		{ REGION(.hva = HVA, .length = K4, .offset = 100), "offset is not" },
		{ REGION(.hva = -K4, .length = 2 * K4), "hva wraps" },
		{ REGION(.hva = -K4, .length = K4), "hva wraps" },
		{ REGION(.hva = HVA, .length = -K4), "hva wraps" },
		{ REGION(.hva = HVA, .gpa = -K4, .length = 2 * K4), "gpa wraps" },
		{ REGION(.hva = HVA, .offset = -K4, .length = 2 * K4), "offset wraps" },
		{ { .size = 4, .hva = HVA, .length = K4 }, "size is 4" },
	};
	struct infill_memory *m = memory_new();

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		assert_int_equal(infill_memory_add(m, &table[i].region), -EINVAL);
		if (!strstr(infill_error(), table[i].why))
			fail_msg("%zu: %s", i, infill_error());
	}
	assert_int_equal(m->count, 0);
	infill_memory_free(m);
}

static void good_regions_are_taken(void **state)
{
	static const struct infill_region table[] = {
		REGION(.hva = HVA, .length = K4),
		REGION(.hva = HVA + M2, .length = M2, .page_size = M2, .offset = K4,
		       .backing = INFILL_BACKING_HUGETLB),
		REGION(.hva = HVA + 4 * M2, .length = M2, .page_size = M2),
		REGION(.hva = HVA + 6 * M2, .length = K4, .page_size = K4,
		       .backing = INFILL_BACKING_SHMEM),
		REGION(.hva = -2 * K4, .length = K4),
	};
	struct infill_memory *m = memory_new();

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++)
		assert_int_equal(infill_memory_add(m, &table[i]), 0);
	infill_memory_free(m);
}

static void overlaps_in_hva_are_refused(void **state)
{
	static const struct {
		uint64_t hva, length;
		int code;
	} table[] = {
		{ HVA + 10 * K4, K4, -EEXIST },	    { HVA + 9 * K4, 2 * K4, -EEXIST },
		{ HVA + 13 * K4, 5 * K4, -EEXIST }, { HVA + 11 * K4, K4, -EEXIST },
		{ HVA, 100 * K4, -EEXIST },	    { HVA + 9 * K4, K4, 0 },
		{ HVA + 14 * K4, K4, 0 },
	};
	const struct infill_region first = REGION(.hva = HVA + 10 * K4, .length = 4 * K4);
	struct infill_memory *m = memory_new();

	(void)state;
	assert_int_equal(infill_memory_add(m, &first), 0);
	for (size_t i = 0; i < COUNT(table); i++) {
		struct infill_region r = REGION(.hva = table[i].hva, .length = table[i].length);

		assert_int_equal(infill_memory_add(m, &r), table[i].code);
		if (table[i].code)
			assert_non_null(strstr(infill_error(), "overlap in hva"));
	}
	infill_memory_free(m);
}

static int add_gpa(struct infill_memory *m, uint64_t gpa)
{
	struct infill_region r = REGION(.hva = HVA + m->count * 16 * K4, .length = 4 * K4,
					.gpa = gpa);

	return infill_memory_add(m, &r);
}

static void gpas_that_are_all_zero_are_not_known(void **state)
{
	struct infill_memory *m = memory_new();

	(void)state;
	assert_int_equal(add_gpa(m, 0), 0);
	assert_int_equal(add_gpa(m, 0), 0);
	assert_int_equal(add_gpa(m, 0), 0);
	/* One that is known shows that the others overlap. */
	assert_int_equal(add_gpa(m, 1 << 20), -EEXIST);
	infill_memory_free(m);
}

static void overlaps_in_gpa_are_refused(void **state)
{
	struct infill_memory *m = memory_new();

	(void)state;
	assert_int_equal(add_gpa(m, 0), 0);
	assert_int_equal(add_gpa(m, 4 * K4), 0);
	assert_int_equal(add_gpa(m, 0), -EEXIST);
	assert_non_null(strstr(infill_error(), "overlap in gpa"));
	assert_int_equal(add_gpa(m, 7 * K4), -EEXIST);
	assert_int_equal(add_gpa(m, 3 * K4), -EEXIST);
	assert_int_equal(add_gpa(m, 8 * K4), 0);
	infill_memory_free(m);
}

static void there_is_a_most_of_regions(void **state)
{
	struct infill_memory *m = memory_new();

	(void)state;
	for (unsigned i = 0; i < INFILL_MEMORY_REGIONS_MAX; i++)
		assert_int_equal(add_gpa(m, i * 16 * K4), 0);
	assert_int_equal(add_gpa(m, 1ull << 40), -ENOSPC);
	assert_int_equal(m->count, INFILL_MEMORY_REGIONS_MAX);
	infill_memory_free(m);
}

/* ---- mapping -------------------------------------------------------------------- */

static bool is_mapped(uint64_t hva, uint64_t length)
{
	return !msync((void *)(uintptr_t)hva, length, MS_ASYNC);
}

static void mapped_memory_is_unmapped_exactly(void **state)
{
	static const struct infill_region table[] = {
		REGION(.length = 3 * K4),
		REGION(.length = 3 * K4, .backing = INFILL_BACKING_SHMEM),
		REGION(.length = 2 * M2, .page_size = M2),
		REGION(.length = 2 * M2, .page_size = M2, .backing = INFILL_BACKING_SHMEM),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		struct infill_region r = table[i], kept = REGION(.length = K4);
		struct infill_memory *m = memory_new();
		char *own = mmap(NULL, K4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
				 0);

		assert_int_equal(infill_memory_map(m, &r), 0);
		assert_int_equal(r.hva % (r.page_size ? r.page_size : K4), 0);
		memset((void *)(uintptr_t)r.hva, 0x5a, r.length);
		/* A region that is only added stays mapped. */
		kept.hva = (uintptr_t)own;
		kept.gpa = 1ull << 40;
		assert_int_equal(infill_memory_add(m, &kept), 0);
		infill_memory_free(m);
		assert_false(is_mapped(r.hva, r.length));
		assert_true(is_mapped(kept.hva, kept.length));
		munmap(own, K4);
	}
}

static size_t mapped_bytes(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	size_t bytes = 0;
	unsigned long long begin, end;

	while (fscanf(file, "%llx-%llx%*[^\n]", &begin, &end) == 2)
		bytes += end - begin;
	fclose(file);
	return bytes;
}

static void aligning_leaves_nothing_behind(void **state)
{
	struct infill_region r = REGION(.length = M2, .page_size = M2);
	struct infill_memory *m = memory_new();
	size_t before;

	(void)state;
	mapped_bytes(); /* stdio has its buffers now */
	before = mapped_bytes();
	for (unsigned i = 0; i < 5; i++) {
		r.gpa = i * M2;
		assert_int_equal(infill_memory_map(m, &r), 0);
	}
	assert_int_equal(mapped_bytes(), before + 5 * M2);
	infill_memory_free(m);
	assert_true(mapped_bytes() <= before);
}

static void shmem_is_shared_with_children(void **state)
{
	struct infill_region r = REGION(.length = K4, .backing = INFILL_BACKING_SHMEM);
	struct infill_memory *m = memory_new();
	FILE *file;
	char line[512];
	bool found = false;

	(void)state;
	assert_int_equal(infill_memory_map(m, &r), 0);
	file = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof(line), file))
		found |= strtoull(line, NULL, 16) == r.hva && strstr(line, "rw-s");
	fclose(file);
	assert_true(found);
	infill_memory_free(m);
}

static void hugetlb_is_mapped(void **state)
{
	struct infill_region r = REGION(.length = M2, .page_size = M2,
					.backing = INFILL_BACKING_HUGETLB);
	struct infill_memory *m = memory_new();
	int code = infill_memory_map(m, &r);

	(void)state;
	if (code) {
		assert_int_equal(code, -ENOMEM);
		assert_non_null(strstr(infill_error(), "raise vm.nr_hugepages"));
		infill_memory_free(m);
		print_message("no free huge pages\n");
		skip();
	}
	*(volatile char *)(uintptr_t)(r.hva + M2 - 1) = 1;
	infill_memory_free(m);
	assert_false(is_mapped(r.hva, M2));
}

static void what_cannot_be_mapped_is_refused(void **state)
{
	static const struct {
		struct infill_region region;
		int code;
	} table[] = {
		{ REGION(.length = 0), -EINVAL },
		{ REGION(.length = 100), -EINVAL },
		{ REGION(.length = K4, .backing = 9), -EINVAL },
		{ REGION(.length = 1ull << 62), -ENOMEM },
		{ REGION(.length = -M2, .page_size = M2), -ENOMEM },
		{ { .size = 24, .length = K4 }, -EINVAL }, /* too short for its length */
	};
	struct infill_memory *m = memory_new();

	(void)state;
	for (size_t i = 0; i < COUNT(table); i++) {
		struct infill_region r = table[i].region;

		assert_int_equal(infill_memory_map(m, &r), table[i].code);
	}
	assert_int_equal(m->count, 0);
	infill_memory_free(m);
}

static void a_refused_mapping_is_undone(void **state)
{
	struct infill_region first = REGION(.length = K4, .gpa = K4),
			     again = REGION(.length = 1 << 20, .gpa = K4);
	struct infill_memory *m = memory_new();
	size_t before;

	(void)state;
	assert_int_equal(infill_memory_map(m, &first), 0);
	mapped_bytes();
	before = mapped_bytes();
	assert_int_equal(infill_memory_map(m, &again), -EEXIST);
	assert_int_equal(again.hva, 0);
	assert_int_equal(mapped_bytes(), before);
	infill_memory_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(regions_are_sorted_by_hva),
		cmocka_unit_test(bad_regions_are_refused),
		cmocka_unit_test(good_regions_are_taken),
		cmocka_unit_test(overlaps_in_hva_are_refused),
		cmocka_unit_test(gpas_that_are_all_zero_are_not_known),
		cmocka_unit_test(overlaps_in_gpa_are_refused),
		cmocka_unit_test(there_is_a_most_of_regions),
		cmocka_unit_test(mapped_memory_is_unmapped_exactly),
		cmocka_unit_test(aligning_leaves_nothing_behind),
		cmocka_unit_test(shmem_is_shared_with_children),
		cmocka_unit_test(hugetlb_is_mapped),
		cmocka_unit_test(what_cannot_be_mapped_is_refused),
		cmocka_unit_test(a_refused_mapping_is_undone),
	};

	return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
