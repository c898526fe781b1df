/* SPDX-License-Identifier: MIT */
/*
 * failure.c: a session that has failed: threads that wait for memory, in the kernel
 * or not, get a memory error, none waits on, and none reads zeros.
 */
#include "tests.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define READERS 8u
#define THERE 4u   /* a page that is filled before */
#define GIVEN_UP 9u
#define BORDER 500u /* a page with another protection: its mapping has borders */
#define WAIT_MS 20000

/* A thread that reads the first word of a page; BY_KERNEL: for a system call. */
struct reader {
	struct rig *rig;
	uint32_t page;
	bool by_kernel;
	pthread_t thread;
	uint32_t word;
	int error; /* EFAULT: a memory error */
	_Atomic bool done;
};

static __thread sigjmp_buf memory_error;

static void on_sigbus(int signal)
{
	(void)signal;
	siglongjmp(memory_error, 1);
}

static int read_by_kernel(const uint32_t *at, uint32_t *word)
{
	int pipes[2], error = 0;

	if (pipe(pipes))
		return errno;
	if (write(pipes[1], at, sizeof(*at)) != sizeof(*at) ||
	    read(pipes[0], word, sizeof(*word)) != sizeof(*word))
		error = errno;
	close(pipes[0]);
	close(pipes[1]);
	return error;
}

static void *read_page(void *arg)
{
	struct reader *r = arg;
	const uint32_t *at = r->rig->memory + (size_t)r->page * WORDS;

	if (r->by_kernel)
		r->error = read_by_kernel(at, &r->word);
	else if (sigsetjmp(memory_error, 1))
		r->error = EFAULT;
	else
		r->word = *(const volatile uint32_t *)at;
	r->done = true;
	return NULL;
}

static void start_reader(struct reader *r, struct rig *rig, uint32_t page, bool by_kernel)
{
	*r = (struct reader){ .rig = rig, .page = page, .by_kernel = by_kernel };
	pthread_create(&r->thread, NULL, read_page, r);
}

/* Let go of the memory: who still waits for it reads zeros then. */
static void end_session(struct rig *rig)
{
	infill_vcpu_free(rig->filler[0]);
	rig->filler[0] = NULL;
	infill_session_stop(rig->session);
	rig->session = NULL;
}

/* Each of COUNT, before the session is stopped, with ERROR, or else what the page has. */
static void join_readers(struct reader *r, unsigned count, int error, uint32_t word)
{
	for (unsigned i = 0; i < count; i++) {
		for (unsigned ms = 0; ms < WAIT_MS && !bad && !r[i].done; ms++)
			usleep(1000);
		CHECK(bad || r[i].done, "page %u: its reader waits on", r[i].page);
	}
	if (bad)
		end_session(r->rig);
	for (unsigned i = 0; i < count; i++) {
		pthread_join(r[i].thread, NULL);
		CHECK(bad || (r[i].error == error && (error || r[i].word == word)),
		      "page %u%s: error %d, %u", r[i].page, r[i].by_kernel ? ", by the kernel" : "",
		      r[i].error, r[i].word);
	}
}

/* One of each kind. */
static void check_readers(struct rig *rig, uint32_t page, int error, uint32_t word)
{
	struct reader reader[2];

	if (bad)
		return;
	start_reader(&reader[0], rig, page, false);
	start_reader(&reader[1], rig, page, true);
	join_readers(reader, 2, error, word);
}

void check_nobody_waits(struct rig *rig, uint32_t page, bool missing)
{
	struct sigaction action = { .sa_handler = on_sigbus }, old;

	sigaction(SIGBUS, &action, &old);
	check_readers(rig, page, missing ? EFAULT : 0, word_of(page));
	sigaction(SIGBUS, &old, NULL);
}

/* As it was before, in each of these ways. */
static void check_the_rest(struct rig *rig)
{
	check_readers(rig, THERE, 0, word_of(THERE));
	check_readers(rig, GIVEN_UP, 0, 0);
	for (uint32_t page = BORDER - 2; page <= BORDER + 2; page++)
		check_readers(rig, page, EFAULT, 0);
	check_readers(rig, PAGES - 1, EFAULT, 0);
	if (bad)
		return;
	guest_visit(&rig->vcpu[0], 1, PAGES / 2, 1, 0);
	CHECK(run(rig, 0, &(uint32_t){ 0 }) == -ESTALE, "%s", infill_error());
	CHECK(infill_session_error(rig->session, NULL) == -ESTALE, "the session goes on");
}

/* Threads that wait for the session's thread, which finds that the image has changed. */
static void fail_by_touch(struct rig *rig)
{
	struct reader reader[READERS];

	for (unsigned i = 0; i < READERS; i++)
		start_reader(&reader[i], rig, 100 + i / 2 * 50, i % 2);
	join_readers(reader, READERS, EFAULT, 0);
}

/* A vCPU finds it. */
static void fail_by_exit(struct rig *rig)
{
	guest_visit(&rig->vcpu[0], 1, 100, 1, 0);
	CHECK(run(rig, 0, &(uint32_t){ 0 }) == -ESTALE, "%s", infill_error());
}

void test_failed(enum kind kind)
{
	void (*const fail[])(struct rig *rig) = { fail_by_touch, fail_by_exit };
	struct sigaction action = { .sa_handler = on_sigbus }, old;
	struct rig rig;

	if (kind == GUEST_MEMFD) /* where nobody waits for a userfaultfd */
		return;
	sigaction(SIGBUS, &action, &old);
	for (unsigned i = 0; i < 2 && !bad; i++) {
		if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
			const uint64_t there = GUEST_MEMORY_GPA + THERE * GUEST_PAGE;

			CHECK(!infill_session_fill(rig.session, there, GUEST_PAGE), "%s",
			      infill_error());
			CHECK(!infill_session_discard(rig.session, GUEST_MEMORY_GPA +
						      GIVEN_UP * GUEST_PAGE, GUEST_PAGE), "%s",
			      infill_error());
			CHECK(!mprotect(rig.memory + (size_t)BORDER * WORDS, GUEST_PAGE, PROT_READ),
			      "%m");
			usleep(20000); /* a tick, so that the time of modification is another */
			close(make_image());
			fail[i](&rig);
			check_the_rest(&rig);
		}
		tear_down(&rig);
	}
	sigaction(SIGBUS, &old, NULL);
}
