// SPDX-License-Identifier: MIT
/*
 * minor.c: many clones of one image share its pages in a cache, and each
 * keeps its own writes and removals to itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

#define CLONES 8
#define PAGEMAP_FILE (1ull << 61) /* a page of a file, here: of the cache */

struct clones {
	struct rig rig; /* image, cache, pool and the first clone */
	struct fakevmm *vmm[CLONES];
	struct infill_session *session[CLONES];
};

static void clone_start(struct clones *clones, unsigned i)
{
	struct fakevmm_options vmm = {
		.image = &clones->rig.image,
		.backing = INFILL_BACKING_SHMEM,
		.cache_fd = infill_cache_fd(clones->rig.cache),
	};
	struct infill_session_options options = clones->rig.session_options;
	struct infill_memory *memory;

	options.size = sizeof(options);
	options.cache = clones->rig.cache;
	clones->vmm[i] = fakevmm_new(&vmm);
	memory = fakevmm_memory(clones->vmm[i]);
	assert_int_equal(fakevmm_register(clones->vmm[i]), 0);
	assert_int_equal(infill_session_adopt(&clones->session[i], clones->rig.pool, memory,
					      clones->rig.source, clones->vmm[i]->uffd, &options),
			 0);
	infill_memory_free(memory);
}

static void clones_start(struct clones *clones, uint32_t fill)
{
	clones->rig.minor = true;
	clones->rig.adopt = true;
	clones->rig.session_options.fill = fill;
	assert_int_equal(rig_start(&clones->rig), 0);
	clones->vmm[0] = clones->rig.vmm;
	clones->session[0] = clones->rig.session;
	for (unsigned i = 1; i < CLONES; i++)
		clone_start(clones, i);
}

static void clones_stop(struct clones *clones)
{
	for (unsigned i = 1; i < CLONES; i++) {
		infill_session_stop(clones->session[i]);
		fakevmm_free(clones->vmm[i]);
	}
	rig_stop(&clones->rig);
}

static uint64_t cache_blocks(const struct clones *clones)
{
	struct stat status;

	assert_int_equal(fstat(infill_cache_fd(clones->rig.cache), &status), 0);
	return (uint64_t)status.st_blocks * 512;
}

/* How many pages of the clone are the cache's own. */
static uint64_t shared_pages(const struct fakevmm *vmm)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t count = 0;

	assert_true(fd >= 0);
	for (uint64_t page = 0; page < vmm->pages; page++) {
		off_t at = (off_t)((uintptr_t)fakevmm_page(vmm, page) / FAKE_PAGE * 8);
		uint64_t entry;

		assert_int_equal(pread(fd, &entry, sizeof(entry), at), sizeof(entry));
		count += (entry >> 63) && (entry & PAGEMAP_FILE);
	}
	close(fd);
	return count;
}

static void clones_share_one_copy(void **state)
{
	struct clones clones = { .rig = { .image = { .bytes = 16u << 20, .seed = 41 } } };

	(void)state;
	clones_start(&clones, INFILL_FILL_NONE);
	rig_assert_load(clones.vmm[0], fakevmm_verify(clones.vmm[0]));
	assert_int_equal(infill_cache_bytes(clones.rig.cache), clones.rig.image.bytes);
	assert_int_equal(cache_blocks(&clones), clones.rig.image.bytes);
	for (unsigned i = 1; i < CLONES; i++) {
		struct infill_counters c;

		rig_assert_load(clones.vmm[i], fakevmm_verify(clones.vmm[i]));
		c = rig_settled(clones.session[i]);
		assert_int_equal(c.read_bytes, 0);
		assert_int_equal(c.installs, c.pages);
		assert_int_equal(shared_pages(clones.vmm[i]), c.pages);
	}
	assert_int_equal(infill_cache_bytes(clones.rig.cache), clones.rig.image.bytes);
	assert_int_equal(cache_blocks(&clones), clones.rig.image.bytes);
	clones_stop(&clones);
}

static void eight_clones_at_once_are_right(void **state)
{
	struct clones clones = { .rig = { .image = { .bytes = 8u << 20, .seed = 42, .hole_every = 9,
						     .zero_every = 9 } } };
	struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .passes = 2, .write_every = 6,
				     .removers = 1, .remove_pages = 20, .remove_pause_us = 500 };

	(void)state;
	clones_start(&clones, *(uint32_t *)*state);
	for (unsigned i = 0; i < CLONES; i++) {
		load.seed = i;
		fakevmm_start(clones.vmm[i], &load);
	}
	for (unsigned i = 0; i < CLONES; i++)
		rig_assert_load(clones.vmm[i], fakevmm_finish(clones.vmm[i]));
	for (unsigned i = 0; i < CLONES; i++)
		rig_assert_load(clones.vmm[i], fakevmm_verify(clones.vmm[i]));
	assert_true(infill_cache_bytes(clones.rig.cache) <= clones.rig.image.bytes);
	clones_stop(&clones);
}

static void writes_stay_in_their_clone(void **state)
{
	struct clones clones = { .rig = { .image = { .bytes = 4u << 20, .seed = 43 } } };
	struct fakevmm_load write = { .passes = 1, .write_every = 1 };

	(void)state;
	clones_start(&clones, INFILL_FILL_NONE);
	rig_assert_load(clones.vmm[0], fakevmm_run(clones.vmm[0], &write));
	assert_int_equal(shared_pages(clones.vmm[0]), 0);
	for (unsigned i = 0; i < CLONES; i++)
		rig_assert_load(clones.vmm[i], fakevmm_verify(clones.vmm[i]));
	clones_stop(&clones);
}

/* The cache still has the page that was given back: it must read as zero all the same. */
static void removed_pages_are_zero_in_their_clone_only(void **state)
{
	struct clones clones = { .rig = { .image = { .bytes = 4u << 20, .seed = 44 } } };

	(void)state;
	clones_start(&clones, INFILL_FILL_NONE);
	for (unsigned i = 0; i < CLONES; i++)
		rig_assert_load(clones.vmm[i], fakevmm_verify(clones.vmm[i]));
	assert_int_equal(fakevmm_remove(clones.vmm[2], 100, 50), 0);
	assert_int_equal(fakevmm_remove(clones.vmm[3], 0, clones.vmm[3]->pages), 0);
	for (unsigned i = 0; i < CLONES; i++)
		rig_assert_load(clones.vmm[i], fakevmm_verify(clones.vmm[i]));
	clones_stop(&clones);
}

static void all_fills_a_clone(void **state)
{
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 45 }, .minor = true };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).faults, 0);
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* Removal after everything is resident, when the pager might think that its work is done. */
static void removal_after_all_is_zero(void **state)
{
	struct rig rig = { .image = { .bytes = 8u << 20, .seed = 46 }, .minor = true };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	assert_int_equal(fakevmm_remove(rig.vmm, 64, 128), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	rig_stop(&rig);
}

int main(void)
{
	static uint32_t none = INFILL_FILL_NONE, all = INFILL_FILL_ALL;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(clones_share_one_copy),
		{ "8 clones at once, fill none", eight_clones_at_once_are_right, NULL, NULL, &none },
		{ "8 clones at once, fill all", eight_clones_at_once_are_right, NULL, NULL, &all },
		cmocka_unit_test(writes_stay_in_their_clone),
		cmocka_unit_test(removed_pages_are_zero_in_their_clone_only),
		cmocka_unit_test(all_fills_a_clone),
		cmocka_unit_test(removal_after_all_is_zero),
	};

	return _cmocka_run_group_tests("pager/minor", tests, sizeof(tests) / sizeof(tests[0]), NULL,
				       NULL);
}
