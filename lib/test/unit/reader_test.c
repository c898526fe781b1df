/* SPDX-License-Identifier: MIT */
/*
 * reader_test.c: asynchronous reads, by io_uring and by threads: the same
 * tests on both.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "infill.h"
#include "reader.h"

#define PAGES 512
#define REQUESTS 600 /* more than the ring has entries */

struct desk {
	struct reader *reader;
	struct infill_image *image;
	int fd;
};

static uint64_t word_at(uint64_t offset)
{
	return offset * 0x9e3779b97f4a7c15u + 1;
}

static void write_image(int fd)
{
	uint64_t page[512];

	for (uint64_t p = 0; p < PAGES; p++) {
		for (uint64_t i = 0; i < 512; i++)
			page[i] = word_at(p * 4096 + i * 8);
		assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)p * 4096), sizeof(page));
	}
}

static int set_up(void **state)
{
	struct desk *d = calloc(1, sizeof(*d));

	d->fd = memfd_create("reader_test", MFD_CLOEXEC);
	write_image(d->fd);
	assert_int_equal(infill_image_open_fd(&d->image, d->fd, "image", NULL), 0);
	assert_int_equal(reader_new(&d->reader), 0);
	*state = d;
	return 0;
}

static int set_up_threads(void **state)
{
	int err;

	setenv("INFILL_NO_IO_URING", "1", 1);
	err = set_up(state);
	unsetenv("INFILL_NO_IO_URING");
	return err;
}

static int tear_down(void **state)
{
	struct desk *d = *state;

	reader_free(d->reader);
	infill_image_close(d->image);
	close(d->fd);
	free(d);
	return 0;
}

static struct reader_request *request(struct desk *d, uint64_t offset, size_t length)
{
	struct reader_request *q = calloc(1, sizeof(*q));

	q->image = d->image;
	q->offset = offset;
	q->length = length;
	q->buffer = aligned_alloc(4096, length);
	memset(q->buffer, 0xee, length);
	reader_submit(d->reader, q);
	return q;
}

/* The next request that is done; waits on the reader's fd as a loop does. */
static struct reader_request *next_done(struct desk *d)
{
	struct pollfd p = { .fd = reader_fd(d->reader), .events = POLLIN };
	struct reader_request *q;

	while (!(q = reader_reap(d->reader))) {
		reader_flush(d->reader);
		assert_int_equal(poll(&p, 1, 10000), 1);
		reader_seen(d->reader);
	}
	return q;
}

static void done_with(struct reader_request *q)
{
	free(q->buffer);
	free(q);
}

static void content_arrives(void **state)
{
	struct desk *d = *state;
	struct reader_request *q;

	request(d, 7 * 4096, 3 * 4096);
	q = next_done(d);
	assert_int_equal(q->result, 0);
	for (uint64_t i = 0; i < q->length; i += 8)
		assert_int_equal(*(uint64_t *)((char *)q->buffer + i), word_at(q->offset + i));
	done_with(q);
	assert_int_equal(reader_busy(d->reader), 0);
	assert_null(reader_reap(d->reader));
}

static void many_at_once_all_arrive(void **state)
{
	struct desk *d = *state;

	for (uint64_t i = 0; i < REQUESTS; i++)
		request(d, i % PAGES * 4096, 4096);
	assert_int_equal(reader_busy(d->reader), REQUESTS);
	for (uint64_t i = 0; i < REQUESTS; i++) {
		struct reader_request *q = next_done(d);

		assert_int_equal(q->result, 0);
		assert_int_equal(*(uint64_t *)q->buffer, word_at(q->offset));
		done_with(q);
	}
	assert_int_equal(reader_busy(d->reader), 0);
}

static void a_changed_image_is_an_error(void **state)
{
	struct desk *d = *state;
	struct reader_request *q;

	assert_int_equal(ftruncate(d->fd, 4096), 0);
	request(d, 8 * 4096, 4096);
	q = next_done(d);
	assert_int_equal(q->result, -ESTALE);
	done_with(q);
}

#define BOTH(f)                                                    \
	cmocka_unit_test_setup_teardown(f, set_up, tear_down),         \
	{ #f "_by_threads", f, set_up_threads, tear_down, NULL }

int main(void)
{
	static const struct CMUnitTest tests[] = {
		BOTH(content_arrives),
		BOTH(many_at_once_all_arrive),
		BOTH(a_changed_image_is_an_error),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("reader", tests, NULL, NULL);
}
