/* SPDX-License-Identifier: MIT */
/*
 * queue_test.c: the order of what is filled ahead: the trace as it was
 * recorded, then the rest without its holes, never a page that is not missing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "pagemap.h"
#include "queue.h"
#include "session.h"
#include "memory.h"

#define PAGE 4096u
#define SMALL_PAGES 64 /* the first region; the second has two huge pages behind it in the image */
#define HUGE_AT ((uint64_t)SMALL_PAGES * PAGE)

/* Data in pages 0-15 and 32-63 of the small region and in the first huge page. */
struct desk {
	struct infill_session s;
	int fd, state_fd;
};

static void write_data(int fd, uint64_t from, uint64_t to)
{
	char page[PAGE];

	memset(page, 1, sizeof(page));
	for (; from < to; from += PAGE)
		assert_int_equal(pwrite(fd, page, PAGE, (off_t)from), PAGE);
}

static int set_up(void **state)
{
	static struct desk d;
	struct infill_memory m = { .count = 2 };
	struct infill_identity id;
	bool resumed;

	memset(&d, 0, sizeof(d));
	d.fd = memfd_create("queue_test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(d.fd, HUGE_AT + 2 * HUGE_PAGE), 0);
	write_data(d.fd, 0, 16 * PAGE);
	write_data(d.fd, 32 * PAGE, HUGE_AT + PAGE);
	assert_int_equal(infill_image_open_fd(&d.s.image, d.fd, "image", NULL), 0);
	infill_image_identity(d.s.image, &id);
	m.region[0] = (struct infill_region){ .hva = 1 << 30, .length = HUGE_AT, .page_size = PAGE };
	m.region[1] = (struct infill_region){
		.hva = 2u << 30, .length = 2 * HUGE_PAGE, .offset = HUGE_AT, .page_size = HUGE_PAGE,
	};
	d.state_fd = memfd_create("state", MFD_CLOEXEC);
	assert_int_equal(pagemap_open(&d.s.pm, d.state_fd, &m, &id, 0, &resumed), 0);
	*state = &d;
	return 0;
}

static int tear_down(void **state)
{
	struct desk *d = *state;

	pagemap_close(&d->s.pm);
	infill_image_close(d->s.image);
	close(d->fd);
	close(d->state_fd);
	return 0;
}

/* Take the next run and check it; why: 't'race, 'r'est, 'h'ole, '-' nothing. */
static void expect(struct desk *d, uint64_t max_bytes, char why, uint64_t page, uint64_t count)
{
	struct queue_run run;
	bool got = queue_next(&d->s, max_bytes, 1, &run);

	assert_int_equal(got, why != '-');
	if (!got)
		return;
	assert_int_equal(run.trace ? 't' : run.hole ? 'h' : 'r', why);
	assert_int_equal(run.page, page);
	assert_int_equal(run.count, count);
}

static void the_rest_is_cut_at_holes_and_bounds(void **state)
{
	struct desk *d = *state;

	expect(d, 8 * PAGE, 'r', 0, 8);
	expect(d, 8 * PAGE, 'r', 8, 8);
	expect(d, 8 * PAGE, 'h', 16, 16);
	expect(d, 1 << 20, 'r', 32, 32);
	expect(d, 1 << 20, 'r', 64, 1); /* a huge page that is partly data */
	expect(d, 1 << 20, 'h', 65, 1);
	expect(d, 1 << 20, '-', 0, 0);
	assert_int_equal(queue_wait(&d->s, 1), UINT64_MAX);
}

static void pages_that_are_there_are_left_out(void **state)
{
	struct desk *d = *state;

	pagemap_move(&d->s.pm, 4, 2, PAGE_FILLING);
	pagemap_move(&d->s.pm, 4, 2, PAGE_PRESENT);
	expect(d, 1 << 20, 'r', 0, 4);
	expect(d, 1 << 20, 'r', 6, 10);
}

static void the_trace_comes_first_and_in_its_order(void **state)
{
	struct desk *d = *state;
	struct trace_run run[] = {
		{ 40 * PAGE, 4 * PAGE },
		{ 2 * PAGE, 3 * PAGE },
		{ HUGE_AT + HUGE_PAGE - PAGE, 2 * PAGE }, /* ends of both huge pages */
		{ HUGE_AT + 8 * HUGE_PAGE, PAGE },        /* the VM has less than the image */
	};

	d->s.trace = (struct trace){ .count = 4, .run = run };
	expect(d, 1 << 20, 't', 40, 4);
	pagemap_move(&d->s.pm, 40, 4, PAGE_FILLING);
	expect(d, 2 * PAGE, 't', 2, 2);
	expect(d, 2 * PAGE, 't', 4, 1);
	expect(d, HUGE_PAGE, 't', 64, 1);
	expect(d, HUGE_PAGE, 't', 65, 1);
	expect(d, 1 << 20, 'r', 0, 16);
	assert_true(d->s.queue.trace_over);
}

static void what_is_not_wanted_is_not_given(void **state)
{
	struct desk *d = *state;
	struct trace_run run = { 0, PAGE };

	d->s.trace = (struct trace){ .count = 1, .run = &run };
	d->s.options.fill = INFILL_FILL_NONE;
	expect(d, 1 << 20, '-', 0, 0);
	d->s.options.fill = INFILL_FILL_TRACE;
	expect(d, 1 << 20, 't', 0, 1);
	expect(d, 1 << 20, '-', 0, 0);
	d->s.options.fill = INFILL_FILL_ALL;
	d->s.recording = true; /* untouched pages stay away, so that touches are seen */
	expect(d, 1 << 20, '-', 0, 0);
	assert_int_equal(queue_wait(&d->s, 1), UINT64_MAX);
	d->s.recording = false;
	expect(d, 1 << 20, 'r', 0, 16);
}

static void a_rate_is_kept(void **state)
{
	const uint64_t second = 1000000000;
	struct desk *d = *state;
	uint64_t bytes = 0, now = second;
	struct queue_run run;

	d->s.options.rate = 8 * PAGE; /* per second */
	while (now < 4 * second) {
		if (queue_next(&d->s, PAGE, now, &run)) {
			bytes += run.hole ? 0 : run.count * PAGE;
			continue;
		}
		assert_in_range(queue_wait(&d->s, now), 1, second);
		now += queue_wait(&d->s, now);
	}
	/* Three seconds: 24 pages, and one that overdraws. */
	assert_in_range(bytes, 22 * PAGE, 25 * PAGE);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(the_rest_is_cut_at_holes_and_bounds),
		TEST(pages_that_are_there_are_left_out),
		TEST(the_trace_comes_first_and_in_its_order),
		TEST(what_is_not_wanted_is_not_given),
		TEST(a_rate_is_kept),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
