// SPDX-License-Identifier: MIT
/*
 * after_read.c: the worker dies at an exact place: events were read from the
 * userfaultfd and nothing was done about them, or a page was installed and
 * that was not noted.  The worker is stopped there by ptrace(2), at the end
 * of the system call, and killed.
 *
 * A further place is a line in `places`.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <dirent.h>
#include <unistd.h>

#include "fakeserver.h"
#include "rig.h"

#define VMS 2
#define KILLS 12 /* at each place; four times as many where instructions are counted */
#define THREADS_MAX 64

struct place {
	const char *name;
	long call;      /* system call on the userfaultfd */
	uint64_t which; /* of read: the event that it has to bring; of ioctl: its request */
	bool before;    /* stop where the call begins, not where it ends */
	bool clone;
	unsigned steps; /* then up to so many instructions further */
};

static const struct place places[] = {
	{ "a REMOVE was read, not applied", SYS_read, UFFD_EVENT_REMOVE, false, false, 0 },
	{ "a fault was read, not served", SYS_read, UFFD_EVENT_PAGEFAULT, false, false, 0 },
	{ "a REMOVE was read, and is being applied", SYS_read, UFFD_EVENT_REMOVE, false, false,
	  3000 },
	{ "a fault was read, and is being served", SYS_read, UFFD_EVENT_PAGEFAULT, false, false,
	  3000 },
	{ "before a page is copied in", SYS_ioctl, UFFDIO_COPY, true, false, 0 },
	{ "a page was copied in, that is not noted", SYS_ioctl, UFFDIO_COPY, false, false, 0 },
	{ "before a zero page", SYS_ioctl, UFFDIO_ZEROPAGE, true, false, 0 },
	{ "a zero page is in, that is not noted", SYS_ioctl, UFFDIO_ZEROPAGE, false, false, 0 },
	{ "clone: a REMOVE was read, not applied", SYS_read, UFFD_EVENT_REMOVE, false, true, 0 },
	{ "clone: before a page is mapped", SYS_ioctl, UFFDIO_CONTINUE, true, true, 0 },
	{ "clone: a page was mapped, that is not noted", SYS_ioctl, UFFDIO_CONTINUE, false, true,
	  0 },
};

#define PLACES (sizeof(places) / sizeof(places[0]))

struct tracee {
	pid_t tid;
	struct __ptrace_syscall_info entry; /* of the call that it is in */
};

struct trace_of {
	pid_t pid;
	struct tracee thread[THREADS_MAX];
	unsigned threads;
};

/* ---- tracing --------------------------------------------------------------- */

static bool fd_is_userfaultfd(pid_t pid, uint64_t fd)
{
	char path[64], target[64] = "";

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, (int)fd);
	return readlink(path, target, sizeof(target) - 1) > 0 && strstr(target, "[userfaultfd]");
}

/* Do the BYTES that the worker read hold an event of the kind? */
static bool has_event(pid_t pid, uint64_t address, uint64_t bytes, uint64_t event)
{
	struct uffd_msg message[64];
	struct iovec to = { message, bytes < sizeof(message) ? bytes : sizeof(message) };
	struct iovec from = { (void *)(uintptr_t)address, to.iov_len };

	if (process_vm_readv(pid, &to, 1, &from, 1, 0) != (ssize_t)to.iov_len)
		return false;
	for (size_t i = 0; i < to.iov_len / sizeof(message[0]); i++)
		if (message[i].event == event)
			return true;
	return false;
}

static bool at_place(const struct trace_of *t, const struct tracee *thread,
		     const struct __ptrace_syscall_info *now, const struct place *place)
{
	const uint64_t *args = thread->entry.entry.args;

	if ((now->op == PTRACE_SYSCALL_INFO_ENTRY) != place->before ||
	    thread->entry.entry.nr != (uint64_t)place->call || !fd_is_userfaultfd(t->pid, args[0]))
		return false;
	if (place->call == SYS_ioctl)
		return (uint32_t)args[1] == (uint32_t)place->which &&
		       (place->before || now->exit.rval == 0);
	return now->exit.rval > 0 &&
	       has_event(t->pid, args[1], (uint64_t)now->exit.rval, place->which);
}

/* Take all threads of PID, the first one first.  False: not permitted. */
static bool trace_begin(struct trace_of *t, pid_t pid)
{
	char path[64];
	struct dirent *entry;
	DIR *dir;

	memset(t, 0, sizeof(*t));
	t->pid = pid;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		pid_t tid = atoi(entry->d_name);

		/* Threads of io_uring are the kernel's own. */
		if (tid <= 0 || t->threads == THREADS_MAX ||
		    ptrace(PTRACE_SEIZE, tid, NULL, PTRACE_O_TRACESYSGOOD))
			continue;
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
		t->thread[t->threads++].tid = tid;
	}
	if (dir)
		closedir(dir);
	return t->threads > 0;
}

/* THREAD has stopped: is it at the place?  If not it goes on. */
static bool thread_stopped(struct trace_of *t, struct tracee *thread, int status,
			   const struct place *place)
{
	struct __ptrace_syscall_info now = { 0 };

	if (!WIFSTOPPED(status))
		return false;
	if (WSTOPSIG(status) == (SIGTRAP | 0x80) &&
	    ptrace(PTRACE_GET_SYSCALL_INFO, thread->tid, sizeof(now), &now) > 0) {
		if (now.op == PTRACE_SYSCALL_INFO_ENTRY)
			thread->entry = now;
		if (at_place(t, thread, &now, place))
			return true;
	}
	ptrace(PTRACE_SYSCALL, thread->tid, NULL, NULL);
	return false;
}

/* Let a thread that is stopped go on for so many instructions. */
static void step(pid_t tid, uint64_t steps)
{
	int status;

	while (steps--)
		if (ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL) ||
		    waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
			return;
}

/* Let the worker run until one of its threads is at the place, and kill it there. */
static bool trace_kill_at(struct trace_of *t, const struct place *place, uint64_t steps,
			  unsigned timeout_ms)
{
	uint64_t end = fake_now_ns() + timeout_ms * 1000000ull;
	bool there = false;

	while (!there && fake_now_ns() < end) {
		bool any = false;

		for (unsigned i = 0; i < t->threads && !there; i++) {
			int status;

			if (waitpid(t->thread[i].tid, &status, __WALL | WNOHANG) != t->thread[i].tid)
				continue;
			any = true;
			there = thread_stopped(t, &t->thread[i], status, place);
			if (there)
				step(t->thread[i].tid, steps);
		}
		if (!any)
			usleep(20);
	}
	kill(t->pid, SIGKILL);
	/* The first thread is reported when all others were waited for. */
	for (unsigned i = t->threads; i-- > 0;)
		waitpid(t->thread[i].tid, NULL, __WALL);
	return there;
}

/* ---- the tests -------------------------------------------------------------- */

static pid_t vm_start(const struct fakeserver *server, const struct fakeimage *image,
		      const struct place *place, struct fakevmm_shared *shared, unsigned i)
{
	struct fakevmm_options options = {
		.image = image,
		.backing = place->clone ? INFILL_BACKING_SHMEM : INFILL_BACKING_ANON,
		.clone = place->clone,
		.shared = shared,
	};
	struct fakevmm_load load = {
		.pattern = FAKEVMM_RANDOM,
		.threads = 2,
		.write_every = 9,
		.removers = 1,
		.remove_pages = 64,
		.remove_pause_us = 500,
		.touch_pause_us = 10,
		.seed = i,
	};

	return fakevmm_fork(&options, &load, server->socket, 0);
}

/* VMs that have used up the image touch no page for the first time any more: take new ones. */
static void vm_renew(const struct fakeserver *server, const struct fakeimage *image,
		     const struct place *place, struct fakevmm_shared *shared, pid_t *vm,
		     unsigned i)
{
	int status;

	if (*vm) {
		atomic_store(&shared->finish, 1);
		status = fake_wait(*vm, 60000);
		if (status || !shared->verified) {
			fakeserver_tail(server, 20);
			fail_msg("the VM ended with status 0x%x: %s", status,
				 shared->failed ? shared->error : "no reason given");
		}
	}
	memset(shared, 0, sizeof(*shared));
	*vm = vm_start(server, image, place, shared, i);
}

static void kill_at(const struct fakeserver *server, const struct place *place, unsigned number)
{
	pid_t worker = fakeserver_worker(server);
	uint64_t steps = place->steps ? fake_mix(number) % place->steps : 0;
	struct trace_of t;

	assert_true(worker > 0);
	if (!trace_begin(&t, worker))
		rig_skip("ptrace(2) of the worker is not permitted");
	if (!trace_kill_at(&t, place, steps, 20000))
		fail_msg("the worker never came to the place");
	assert_true(fakeserver_worker_wait(server, worker, 20000) > 0);
}

static void death_at_this_place_loses_nothing(void **state)
{
	const struct place *place = *state;
	struct fakeimage image = { .bytes = 16u << 20, .seed = 121, .hole_every = 4 };
	struct infill_session_options session = { .size = sizeof(session),
						  .fill = INFILL_FILL_NONE };
	struct infill_server_options options = {
		.session = &session,
		.flags = place->clone ? INFILL_SERVER_SHARED : 0,
	};
	struct fakevmm_shared *shared = fakevmm_shared_new(VMS);
	struct fakeserver server;
	pid_t vm[VMS] = { 0 };

	rig_need_userfaultfd();
	fake_deadline("crash/after_read", 240);
	fakeimage_make(&image);
	options.image = image.path;
	fakeserver_start(&server, &options);
	for (unsigned kills = 0; kills < (place->steps ? 4 * KILLS : KILLS); kills++) {
		if (kills % 3 == 0)
			for (unsigned i = 0; i < VMS; i++)
				vm_renew(&server, &image, place, &shared[i], &vm[i], kills + i);
		kill_at(&server, place, kills);
	}
	for (unsigned i = 0; i < VMS; i++) {
		vm_renew(&server, &image, place, &shared[i], &vm[i], 0);
		kill(vm[i], SIGKILL);
		fake_wait(vm[i], 10000);
	}
	assert_int_equal(fakeserver_stop(&server), 0);
	munmap(shared, VMS * sizeof(*shared));
	fakeimage_remove(&image);
	fake_deadline("", 0);
}

int main(void)
{
	struct CMUnitTest tests[PLACES];

	for (size_t i = 0; i < PLACES; i++)
		tests[i] = (struct CMUnitTest){ places[i].name, death_at_this_place_loses_nothing,
						NULL, NULL, (void *)(uintptr_t)&places[i] };
	return _cmocka_run_group_tests("crash/after_read", tests, PLACES, NULL, NULL);
}
