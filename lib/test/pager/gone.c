// SPDX-License-Identifier: MIT
/*
 * gone.c: a VMM in another process ends, or takes memory away, while the
 * session is at work: the session ends, and nothing hangs.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rig.h"

struct other {
	struct rig rig;
	pid_t pid;
	int sock;  /* to the VMM: it sends its userfaultfd, and hangs up when it ends */
	int pidfd;
};

/* The VMM's process: the same addresses as the parent's mapping, which nobody touches. */
static void vmm_main(struct fakevmm *vmm, int sock, const struct fakevmm_load *load)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(0);
	if (fakevmm_register(vmm) || fakevmm_handshake_on(vmm, sock) < 0)
		_exit(1);
	if (fakevmm_run(vmm, load))
		_exit(2);
	_exit(0);
}

static int receive_uffd(int sock)
{
	char text[4096], control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { text, sizeof(text) };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int fd = -1;

	assert_true(recvmsg(sock, &message, MSG_CMSG_CLOEXEC) > 0);
	assert_non_null(CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* Fork the VMM before there are threads; they come with rig_prepare()'s pool. */
static void other_start(struct other *other, const struct fakevmm_load *load)
{
	struct fakevmm_options vmm = { .image = &other->rig.image };
	struct rig *rig = &other->rig;
	int pair[2];

	rig_need_userfaultfd();
	fake_deadline("pager/gone", 60);
	if (!rig->image.bytes)
		rig->image.bytes = 64u << 20;
	rig->image.seed = 81;
	fakeimage_make(&rig->image);
	rig->vmm = fakevmm_new(&vmm);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	other->pid = fork();
	if (other->pid == 0) {
		close(pair[0]);
		vmm_main(rig->vmm, pair[1], load);
	}
	close(pair[1]);
	other->sock = pair[0];
	other->pidfd = (int)syscall(SYS_pidfd_open, other->pid, 0);
	rig->vmm->uffd = receive_uffd(other->sock);
	assert_true(rig->vmm->uffd >= 0 && other->pidfd >= 0);
}

static void other_serve(struct other *other, int watch_fd)
{
	struct rig *rig = &other->rig;
	struct infill_session_options options = rig->session_options;

	rig->events = rig_events_new();
	options.size = sizeof(options);
	options.watch_fd = watch_fd;
	options.event = rig_events_add;
	options.event_arg = rig->events;
	assert_int_equal(infill_image_open(&rig->source, rig->image.path, NULL), 0);
	assert_int_equal(infill_pool_new(&rig->pool, NULL), 0);
	rig->memory = fakevmm_memory(rig->vmm);
	assert_int_equal(infill_session_adopt(&rig->session, rig->pool, rig->memory, rig->source,
					      rig->vmm->uffd, &options),
			 0);
}

static void other_stop(struct other *other)
{
	kill(other->pid, SIGKILL);
	waitpid(other->pid, NULL, 0);
	rig_stop(&other->rig);
	close(other->sock);
	close(other->pidfd);
}

static void assert_ended(struct other *other)
{
	assert_int_equal(infill_session_wait(other->rig.session, INFILL_WAIT_END, 10000), 0);
	assert_non_null(rig_events_wait(other->rig.events, INFILL_EVENT_ENDED, 0, 10000));
	assert_int_equal(rig_events_count(other->rig.events, INFILL_EVENT_ERROR), 0);
	assert_int_equal(infill_session_wait(other->rig.session, INFILL_WAIT_RESIDENT, 1000),
			 -ECANCELED);
	assert_int_equal(infill_session_error(other->rig.session, NULL), 0);
}

enum watch { WATCH_NOTHING, WATCH_PIDFD, WATCH_SOCKET };

struct row {
	const char *name;
	uint32_t fill;
	uint64_t rate;
	enum watch watch;
	unsigned after_ms;
};

static const struct row rows[] = {
	{ "killed during demand, pidfd watched", INFILL_FILL_NONE, 0, WATCH_PIDFD, 30 },
	{ "killed during demand, socket watched", INFILL_FILL_NONE, 0, WATCH_SOCKET, 30 },
	{ "killed at once, pidfd watched", INFILL_FILL_NONE, 0, WATCH_PIDFD, 0 },
	{ "killed during a slow fill, pidfd watched", INFILL_FILL_ALL, 1u << 20, WATCH_PIDFD, 50 },
	{ "killed during a slow fill, nothing watched", INFILL_FILL_ALL, 1u << 20, WATCH_NOTHING,
	  50 },
	{ "killed during a slow fill, socket watched", INFILL_FILL_ALL, 1u << 20, WATCH_SOCKET, 5 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static void killed_vmm_ends_the_session(void **state)
{
	const struct row *row = *state;
	struct other other = { .rig.session_options = { .fill = row->fill, .rate = row->rate } };
	struct fakevmm_load load = { .threads = 4, .pattern = FAKEVMM_RANDOM,
				     .touch_pause_us = 1000, .removers = 1,
				     .remove_pause_us = 500 };

	other_start(&other, &load);
	other_serve(&other, row->watch == WATCH_PIDFD  ? other.pidfd :
			    row->watch == WATCH_SOCKET ? other.sock :
							 -1);
	fake_sleep_ms(row->after_ms);
	kill(other.pid, SIGKILL);
	assert_ended(&other);
	other_stop(&other);
}

/* The VMM is dead before the session begins. */
static void dead_vmm_ends_the_session(void **state)
{
	struct other other = { .rig.session_options = { .fill = INFILL_FILL_NONE } };
	struct fakevmm_load load = { .touch_pause_us = 100 };

	(void)state;
	other_start(&other, &load);
	kill(other.pid, SIGKILL);
	waitpid(other.pid, NULL, 0);
	other_serve(&other, other.pidfd);
	assert_ended(&other);
	other_stop(&other);
}

static void vmm_that_exits_well_ends_the_session(void **state)
{
	struct other other = { .rig = { .image = { .bytes = 2u << 20 },
					.session_options = { .fill = INFILL_FILL_NONE } } };
	struct fakevmm_load load = { .passes = 1, .count = 300 };
	int status;

	(void)state;
	other_start(&other, &load);
	other_serve(&other, other.pidfd);
	status = fake_wait(other.pid, 20000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_ended(&other);
	other_stop(&other);
}

/* Other sessions of the pool do not notice. */
static void other_sessions_go_on(void **state)
{
	struct other first = { .rig.session_options = { .fill = INFILL_FILL_ALL,
							.rate = 1u << 20 } };
	/* Slowly, so that it is not resident when it is killed. */
	struct fakevmm_load load = { .threads = 4, .pattern = FAKEVMM_RANDOM,
				     .touch_pause_us = 5000 };
	struct rig second = { .image = { .seed = 82 },
			      .session_options = { .fill = INFILL_FILL_NONE } };
	struct infill_pool *pool;

	(void)state;
	other_start(&first, &load);
	other_serve(&first, first.pidfd);
	rig_prepare(&second);
	pool = second.pool;
	second.pool = first.rig.pool;
	assert_int_equal(rig_start_prepared(&second), 0);
	rig_assert_load(second.vmm, fakevmm_touch(second.vmm, 0, 200));
	kill(first.pid, SIGKILL);
	rig_assert_load(second.vmm, fakevmm_verify(second.vmm));
	assert_ended(&first);
	second.pool = pool;
	rig_stop(&second);
	other_stop(&first);
}

/* A part of the memory is unmapped: the rest is served as before. */
static void unmapped_memory_is_left_alone(void **state)
{
	struct rig rig = { .image = { .bytes = 16u << 20, .seed = 83 }, .adopt = true,
			   .session_options = { .fill = INFILL_FILL_ALL } };
	uint64_t half;

	(void)state;
	rig_prepare(&rig);
	half = rig.vmm->pages / 2;
	/* What is mapped in its place keeps the addresses from being given to others. */
	assert_true(mmap(fakevmm_page(rig.vmm, half), half * FAKE_PAGE, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	assert_int_equal(rig_start_prepared(&rig), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, half));
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), 0);
	rig_assert_load(rig.vmm, fakevmm_touch(rig.vmm, 0, half));
	assert_int_equal(infill_session_error(rig.session, NULL), 0);
	rig_stop(&rig);
}

/* Permissions that differ within a region split the kernel's mapping, not the fill. */
static void protected_parts_are_filled_too(void **state)
{
	struct rig rig = { .image = { .bytes = 4u << 20, .seed = 84 }, .adopt = true };

	(void)state;
	rig_prepare(&rig);
	for (uint64_t page = 10; page < rig.vmm->pages; page += 100)
		assert_int_equal(mprotect(fakevmm_page(rig.vmm, page), 7 * FAKE_PAGE, PROT_READ), 0);
	assert_int_equal(rig_start_prepared(&rig), 0);
	assert_int_equal(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), 0);
	rig_assert_load(rig.vmm, fakevmm_verify(rig.vmm));
	assert_int_equal(rig_counters(&rig).faults, 0);
	rig_stop(&rig);
}

int main(void)
{
	static struct CMUnitTest tests[ROWS + 8];
	const struct CMUnitTest more[] = {
		cmocka_unit_test(dead_vmm_ends_the_session),
		cmocka_unit_test(vmm_that_exits_well_ends_the_session),
		cmocka_unit_test(other_sessions_go_on),
		cmocka_unit_test(unmapped_memory_is_left_alone),
		cmocka_unit_test(protected_parts_are_filled_too),
	};

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, killed_vmm_ends_the_session, NULL, NULL,
						(void *)(uintptr_t)&rows[i] };
	memcpy(&tests[ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/gone", tests, ROWS + sizeof(more) / sizeof(more[0]),
				       NULL, NULL);
}
