/* SPDX-License-Identifier: MIT */
/*
 * slow.c: more faults at once than reads are kept under way, on an image that
 * is not in the page cache; and a userfaultfd that cannot be read at all.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "infill.h"
#include "rig.h"

#define THREADS 200 /* demand.c keeps 64 reads under way */
#define APART (128u << 10) /* twice the window of such a read */
#define HANG_S 60

struct desk {
	char path[256];
	struct infill_image *image;
	struct infill_pool *pool;
	struct infill_memory *memory;
	struct infill_region region;
};

static uint64_t word_of(unsigned n)
{
	return 0x1234567800000000u + n;
}

/* A page of data every APART bytes, written to a disk and dropped from memory. */
static void make_image(struct desk *d)
{
	const char *dir = getenv("TMPDIR");
	uint64_t page[512] = { 0 };
	int fd;

	snprintf(d->path, sizeof(d->path), "%s/infill-slow-XXXXXX", dir ? dir : "/tmp");
	fd = mkstemp(d->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, THREADS * APART), 0);
	for (unsigned n = 0; n < THREADS; n++) {
		page[0] = word_of(n);
		assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)n * APART), sizeof(page));
	}
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	close(fd);
}

static int set_up(void **state)
{
	struct desk *d = calloc(1, sizeof(*d));

	make_image(d);
	assert_int_equal(infill_image_open(&d->image, d->path, NULL), 0);
	assert_int_equal(infill_pool_new(&d->pool, NULL), 0);
	assert_int_equal(infill_memory_new(&d->memory), 0);
	d->region = (struct infill_region){ .size = sizeof(d->region), .length = THREADS * APART };
	assert_int_equal(infill_memory_map(d->memory, &d->region), 0);
	*state = d;
	return 0;
}

static int tear_down(void **state)
{
	struct desk *d = *state;

	infill_pool_free(d->pool);
	infill_memory_free(d->memory);
	infill_image_close(d->image);
	unlink(d->path);
	free(d);
	return 0;
}

struct toucher {
	pthread_t thread;
	pthread_barrier_t *begin;
	const uint64_t *at;
	uint64_t seen;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	pthread_barrier_wait(t->begin);
	t->seen = *(const volatile uint64_t *)t->at;
	return NULL;
}

static void many_slow_reads_at_once_all_end(void **state)
{
	static struct toucher t[THREADS];
	struct infill_session_options o = { .size = sizeof(o), .fill = INFILL_FILL_NONE };
	struct desk *d = *state;
	struct infill_session *s;
	pthread_barrier_t begin;

	if (infill_session_start(&s, d->pool, d->memory, d->image, &o)) {
		print_message("# skipped: %s\n", infill_error());
		skip();
	}
	pthread_barrier_init(&begin, NULL, THREADS);
	alarm(HANG_S);
	for (unsigned n = 0; n < THREADS; n++) {
		t[n].begin = &begin;
		t[n].at = (const uint64_t *)(uintptr_t)(d->region.hva + n * APART);
		assert_int_equal(pthread_create(&t[n].thread, NULL, touch, &t[n]), 0);
	}
	for (unsigned n = 0; n < THREADS; n++) {
		pthread_join(t[n].thread, NULL);
		assert_int_equal(t[n].seen, word_of(n));
	}
	alarm(0);
	assert_int_equal(rig_settled(s).demand_pages, THREADS);
	infill_session_stop(s);
	pthread_barrier_destroy(&begin);
}

static uint64_t cpu_ns(void)
{
	struct rusage r;

	getrusage(RUSAGE_SELF, &r);
	return (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000000u +
	       (uint64_t)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1000u;
}

/* epoll reports it as readable for ever, but it is not: no UFFDIO_API was done. */
static void a_userfaultfd_without_api_ends_the_session_and_costs_nothing(void **state)
{
	struct infill_session_options o = { .size = sizeof(o), .fill = INFILL_FILL_NONE };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), err;
	struct desk *d = *state;
	struct infill_session *s;
	uint64_t before;

	if (uffd < 0) {
		print_message("# skipped: no userfaultfd(2) here\n");
		skip();
	}
	assert_int_equal(infill_session_adopt(&s, d->pool, d->memory, d->image, uffd, &o), 0);
	err = infill_session_wait(s, INFILL_WAIT_END, HANG_S * 1000);
	assert_int_equal(err, -EINVAL);
	assert_non_null(strstr(infill_error(), "cannot read events"));
	before = cpu_ns();
	usleep(500000);
	/* A loop that spins takes all of the half second. */
	assert_true(cpu_ns() - before < 250000000);
	infill_session_stop(s);
	close(uffd);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(many_slow_reads_at_once_all_end),
		TEST(a_userfaultfd_without_api_ends_the_session_and_costs_nothing),
	};

	return cmocka_run_group_tests_name("pager/slow", tests, NULL, NULL);
}
