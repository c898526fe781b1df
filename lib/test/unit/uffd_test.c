/* SPDX-License-Identifier: MIT */
/*
 * uffd_test.c: what the kernel answers to installs, and how far they came.
 */
#include <errno.h>
#include <pthread.h>
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
#include "uffd.h"

#define PAGES 8
#define BYTES (PAGES * 4096)

struct place {
	int uffd;
	char *memory;
	uint64_t hva;
	char content[BYTES] __attribute__((aligned(4096)));
};

static int set_up(void **state)
{
	struct place *p = aligned_alloc(4096, sizeof(*p) + 4096 - sizeof(*p) % 4096);

	p->uffd = infill_host_userfaultfd(UFFD_FEATURE_EVENT_REMOVE);
	if (p->uffd < 0) {
		free(p);
		*state = NULL;
		return 0;
	}
	p->memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p->hva = (uintptr_t)p->memory;
	for (int i = 0; i < BYTES; i++)
		p->content[i] = (char)(i / 4096 * 3 + i + 1);
	assert_int_equal(uffd_register(p->uffd, p->hva, BYTES, false), 0);
	*state = p;
	return 0;
}

static int tear_down(void **state)
{
	struct place *p = *state;

	if (!p)
		return 0;
	munmap(p->memory, BYTES);
	close(p->uffd);
	free(p);
	return 0;
}

/* The place, or a skip where userfaultfd is not permitted. */
static struct place *place(void **state)
{
	if (!*state) {
		print_message("no userfaultfd here: %s\n", infill_error());
		skip();
	}
	return *state;
}

static void a_copy_is_whole(void **state)
{
	struct place *p = place(state);
	uint64_t done;

	assert_int_equal(uffd_copy(p->uffd, p->hva, p->content, BYTES, &done), 0);
	assert_int_equal(done, BYTES);
	assert_memory_equal(p->memory, p->content, BYTES);
}

static void a_copy_stops_at_a_present_page(void **state)
{
	struct place *p = place(state);
	uint64_t done;

	assert_int_equal(uffd_zero(p->uffd, p->hva + 3 * 4096, 4096, &done), 0);
	assert_int_equal(uffd_copy(p->uffd, p->hva, p->content, BYTES, &done), -EEXIST);
	assert_int_equal(done, 3 * 4096);
	assert_int_equal(p->memory[3 * 4096], 0);
	assert_memory_equal(p->memory, p->content, 3 * 4096);
}

static void a_copy_from_nowhere_is_told(void **state)
{
	struct place *p = place(state);
	char *nowhere = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t done;

	assert_int_equal(uffd_copy(p->uffd, p->hva, nowhere, BYTES, &done), -EFAULT);
	assert_int_equal(done, 0);
	munmap(nowhere, BYTES);
}

static void an_unmapped_page_is_told(void **state)
{
	struct place *p = place(state);
	uint64_t done;

	munmap(p->memory + 4 * 4096, 4096);
	assert_int_equal(uffd_copy(p->uffd, p->hva + 4 * 4096, p->content, 4096, &done), -ENOENT);
}

static void *remove_pages(void *arg)
{
	struct place *p = arg;

	madvise(p->memory + 4096, 2 * 4096, MADV_DONTNEED);
	return NULL;
}

static void installs_wait_for_an_unread_remove(void **state)
{
	struct place *p = place(state);
	struct uffd_msg events[4] = { 0 };
	pthread_t thread;
	uint64_t done;
	int n = 0, err;

	assert_int_equal(uffd_copy(p->uffd, p->hva, p->content, 3 * 4096, &done), 0);
	pthread_create(&thread, NULL, remove_pages, p);
	/* madvise() blocks until its event is read: sooner or later installs are refused. */
	while ((err = uffd_copy(p->uffd, p->hva, p->content, 4096, &done)) == -EEXIST)
		usleep(100);
	assert_int_equal(err, -EAGAIN);
	while (!(n = uffd_read(p->uffd, events, 4)))
		usleep(100);
	assert_int_equal(n, 1);
	assert_int_equal(events[0].event, UFFD_EVENT_REMOVE);
	assert_int_equal(events[0].arg.remove.start, p->hva + 4096);
	assert_int_equal(events[0].arg.remove.end, p->hva + 3 * 4096);
	pthread_join(thread, NULL);
	assert_int_equal(uffd_zero(p->uffd, p->hva + 4096, 2 * 4096, &done), 0);
	assert_int_equal(p->memory[4096], 0);
}

static void nothing_to_read_is_nothing(void **state)
{
	struct place *p = place(state);
	struct uffd_msg events[4] = { 0 };

	assert_int_equal(uffd_read(p->uffd, events, 4), 0);
}

static void other_files_are_refused(void **state)
{
	int fds[2], copy;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	copy = uffd_adopt(fds[0]);
	assert_int_equal(copy, -EBADF);
	assert_int_equal(uffd_adopt(-1), -EBADF);
	close(fds[0]);
	close(fds[1]);
}

static void a_copy_of_the_fd_serves_too(void **state)
{
	struct place *p = place(state);
	int copy = uffd_adopt(p->uffd);
	uint64_t done;

	assert_true(copy >= 0);
	assert_int_equal(uffd_copy(copy, p->hva, p->content, 4096, &done), 0);
	close(copy);
}

static void unregistered_memory_is_plain(void **state)
{
	struct place *p = place(state);

	assert_int_equal(uffd_unregister(p->uffd, p->hva, BYTES), 0);
	assert_int_equal(p->memory[5 * 4096], 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(a_copy_is_whole),
		TEST(a_copy_stops_at_a_present_page),
		TEST(a_copy_from_nowhere_is_told),
		TEST(an_unmapped_page_is_told),
		TEST(installs_wait_for_an_unread_remove),
		TEST(nothing_to_read_is_nothing),
		TEST(other_files_are_refused),
		TEST(a_copy_of_the_fd_serves_too),
		TEST(unregistered_memory_is_plain),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("uffd", tests, NULL, NULL);
}
