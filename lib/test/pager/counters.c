// SPDX-License-Identifier: MIT
/*
 * counters.c: what a session says about itself: counters, times, latencies
 * and the timeline agree with what was done.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

static void counters_add_up(void **state)
{
	struct rig rig = { .image = { .bytes = 32u << 20, .seed = 101, .hole_every = 6 },
			   .session_options = { .rate = 16u << 20 } };
	struct fakevmm_load load = { .threads = 4, .passes = 2, .pattern = FAKEVMM_RANDOM,
				     .removers = 1, .remove_pause_us = 2000 };
	struct infill_counters last = { 0 };

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	fakevmm_start(rig.vmm, &load);
	for (unsigned i = 0; i < 20; i++) {
		struct infill_counters c = rig_counters(&rig);

		/* All grow only. */
		assert_true(c.faults >= last.faults && c.demand_pages >= last.demand_pages &&
			    c.rest_pages >= last.rest_pages && c.bytes >= last.bytes &&
			    c.zero_pages >= last.zero_pages && c.removed >= last.removed &&
			    c.stall_ns >= last.stall_ns && c.read_bytes >= last.read_bytes);
		last = c;
		fake_sleep_ms(2);
	}
	rig_assert_load(rig.vmm, fakevmm_finish(rig.vmm));
	rig_assert_consistent(&rig);
	rig_stop(&rig);
}

/* A touch that had to wait is one fault with one latency. */
static void one_touch_is_one_fault(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_counters c;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	for (unsigned i = 0; i < 20; i++)
		rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, i * 100, 1));
	c = rig_counters(&rig);
	assert_int_equal(c.faults, 20);
	assert_int_equal(c.demand_pages, 20);
	assert_int_equal(c.bytes, 20 * FAKE_PAGE);
	assert_true(c.latency_p50_ns > 0 && c.stall_ns >= 10 * c.latency_p50_ns);
	assert_true(c.stall_ns <= 20 * c.latency_max_ns);
	rig_stop(&rig);
}

static void times_are_kept_apart(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	uint64_t begin = fake_now_ns(), restored;
	struct infill_counters c;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	c = rig_counters(&rig);
	assert_true(c.start_ns >= begin);
	assert_true(!c.restored_ns && !c.first_work_ns && !c.resident_ns && !c.trace_done_ns);
	assert_int_equal(infill_session_mark(rig.session, INFILL_MARK_RESTORED), 0);
	restored = rig_counters(&rig).restored_ns;
	assert_true(restored >= c.start_ns);
	fake_sleep_ms(2);
	assert_int_equal(infill_session_mark(rig.session, INFILL_MARK_RESTORED), 0);
	assert_int_equal(infill_session_mark(rig.session, INFILL_MARK_FIRST_WORK), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 5000), 0);
	c = rig_counters(&rig);
	assert_int_equal(c.restored_ns, restored);
	assert_true(c.first_work_ns > restored && c.resident_ns >= c.first_work_ns);
	rig_stop(&rig);
}

/* An older caller knows fewer counters: nothing behind its struct is written. */
static void older_struct_is_filled_to_its_size(void **state)
{
	struct rig rig = { 0 };
	union {
		struct infill_counters c;
		unsigned char bytes[sizeof(struct infill_counters) + 64];
	} u;
	size_t short_size = offsetof(struct infill_counters, rest_pages);

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	memset(&u, 0xaa, sizeof(u));
	u.c.size = short_size;
	assert_int_equal(infill_session_counters(rig.session, &u.c), 0);
	assert_int_equal(u.c.pages, rig.vmm->pages);
	for (size_t i = short_size; i < sizeof(u); i++)
		assert_int_equal(u.bytes[i], 0xaa);
	rig_stop(&rig);
}

/* HdrHistogram's percentile text: four columns that rise to 1.0, and three lines of sums. */
static void latencies_are_written_for_plotters(void **state)
{
	struct rig rig = { .session_options = { .fill = INFILL_FILL_NONE } };
	double value, percentile, last_value = 0, last_percentile = 0, max = -1, mean = -1;
	unsigned long long count, last_count = 0, total = 0, rows = 0;
	struct infill_counters c;
	char path[200], line[200];
	FILE *file;
	int fd;

	(void)state;
	assert_int_equal(rig_start(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	snprintf(path, sizeof(path), "%s/latency", fake_dir());
	fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(infill_session_write_latency(rig.session, fd), 0);
	c = rig_counters(&rig);
	close(fd);
	file = fopen(path, "re");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lf %lf %llu", &value, &percentile, &count) == 3) {
			assert_true(value >= last_value && percentile >= last_percentile &&
				    count >= last_count);
			last_value = value;
			last_percentile = percentile;
			last_count = count;
			rows++;
		}
		if (sscanf(line, "#[Max = %lf, Total count = %llu]", &max, &total) != 2)
			sscanf(line, "#[Mean = %lf", &mean);
	}
	fclose(file);
	assert_true(rows > 3 && last_percentile == 1.0);
	assert_int_equal(total, last_count);
	assert_int_equal(total, c.faults);
	assert_true(fabs(max * 1000 - (double)c.latency_max_ns) <= 0.002 * max * 1000 + 1);
	assert_true(fabs(mean * (double)total * 1000 - (double)c.stall_ns) <=
		    0.01 * (double)c.stall_ns + 1000);
	rig_stop(&rig);
}

struct line {
	unsigned long long ns, offset, bytes;
	char class[32];
};

/* Every page is in the timeline once, with the class that the counters have it in. */
static void timeline_has_every_install_once(void **state)
{
	struct rig rig = { .image = { .bytes = 8u << 20, .seed = 103 },
			   .session_options = { .rate = 8u << 20 } };
	struct fakevmm_load load = { .passes = 1, .count = 700, .pattern = FAKEVMM_RANDOM };
	unsigned long long demand = 0, rest = 0, last_ns = 0, marks = 0;
	unsigned char *seen = calloc(1, (8u << 20) / FAKE_PAGE);
	struct infill_counters c;
	char path[200], text[200];
	FILE *file;

	(void)state;
	snprintf(path, sizeof(path), "%s/timeline", fake_dir());
	rig.session_options.timeline_fd =
		open(path, O_CREAT | O_TRUNC | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	assert_true(rig.session_options.timeline_fd > 0 && seen);
	assert_int_equal(rig_start(&rig), 0);
	close(rig.session_options.timeline_fd);
	rig_assert_load(rig.vmm, fakevmm_run(rig.vmm, &load));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 20000), 0);
	c = rig_counters(&rig);
	rig_stop(&rig);
	file = fopen(path, "re");
	assert_non_null(file);
	while (fgets(text, sizeof(text), file)) {
		struct line l;

		if (sscanf(text, "%llu %llu %llu %31s", &l.ns, &l.offset, &l.bytes, l.class) != 4) {
			assert_int_equal(sscanf(text, "%llu - - %31s", &l.ns, l.class), 2);
			marks++;
			continue;
		}
		assert_true(l.ns >= last_ns && l.bytes && l.bytes % FAKE_PAGE == 0);
		last_ns = l.ns;
		demand += strcmp(l.class, "demand") ? 0 : l.bytes;
		rest += strcmp(l.class, "rest") ? 0 : l.bytes;
		for (uint64_t at = l.offset; at < l.offset + l.bytes; at += FAKE_PAGE)
			assert_int_equal(seen[at / FAKE_PAGE]++, 0);
	}
	fclose(file);
	assert_null(memchr(seen, 0, (8u << 20) / FAKE_PAGE));
	assert_int_equal(demand, c.demand_pages * FAKE_PAGE);
	assert_int_equal(rest, c.rest_pages * FAKE_PAGE);
	assert_true(marks >= 2);
	free(seen);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(counters_add_up),
		cmocka_unit_test(one_touch_is_one_fault),
		cmocka_unit_test(times_are_kept_apart),
		cmocka_unit_test(older_struct_is_filled_to_its_size),
		cmocka_unit_test(latencies_are_written_for_plotters),
		cmocka_unit_test(timeline_has_every_install_once),
	};

	return _cmocka_run_group_tests("pager/counters", tests, sizeof(tests) / sizeof(tests[0]),
				       NULL, NULL);
}
