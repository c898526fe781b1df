// SPDX-License-Identifier: MIT
/*
 * supervisor_kill.c: the supervisor is killed with SIGKILL: the worker goes on
 * serving the VMs that it has, and ends with the last of them.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeserver.h"
#include "rig.h"

#define VMS 3

struct row {
	const char *name;
	uint32_t fill;
	uint64_t rate;
	bool worker_first; /* the worker had died and been replaced before */
};

static const struct row rows[] = {
	{ "fill none", INFILL_FILL_NONE, 0, false },
	{ "fill all, slow", INFILL_FILL_ALL, 4u << 20, false },
	{ "after the worker was replaced", INFILL_FILL_NONE, 0, true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static void vms_start(const struct fakeserver *server, const struct fakeimage *image,
		      struct fakevmm_shared *shared, pid_t *vm)
{
	for (unsigned i = 0; i < VMS; i++) {
		struct fakevmm_options options = { .image = image, .regions = 1 + i,
						   .shared = &shared[i] };
		struct fakevmm_load load = { .pattern = FAKEVMM_RANDOM, .threads = 2,
					     .write_every = 9, .removers = 1,
					     .remove_pause_us = 500, .seed = i };

		vm[i] = fakevmm_fork(&options, &load, server->socket, 0);
	}
}

static void vms_finish(struct fakevmm_shared *shared, const pid_t *vm)
{
	for (unsigned i = 0; i < VMS; i++)
		atomic_store(&shared[i].finish, 1);
	for (unsigned i = 0; i < VMS; i++) {
		int status = fake_wait(vm[i], 60000);

		if (status || !shared[i].verified)
			fail_msg("VM %u ended with status 0x%x: %s", i, status,
				 shared[i].failed ? shared[i].error : "no reason given");
	}
}

static void assert_ends(pid_t pid)
{
	uint64_t end = fake_now_ns() + 20000000000u;

	while (fake_now_ns() < end) {
		int status;
		pid_t got = waitpid(pid, &status, WNOHANG);

		if (got == pid) {
			assert_true(WIFEXITED(status));
			return;
		}
		fake_sleep_ms(5);
	}
	kill(pid, SIGKILL);
	fail_msg("the worker does not end with its last VM");
}

static pid_t replace_worker(const struct fakeserver *server, pid_t worker)
{
	assert_int_equal(kill(worker, SIGKILL), 0);
	worker = fakeserver_worker_wait(server, worker, 20000);
	assert_true(worker > 0);
	return worker;
}

/* Both VMs that were touching at the moment and pages that are touched afterwards are served. */
static void worker_goes_on_alone(void **state)
{
	const struct row *row = *state;
	struct fakeimage image = { .bytes = 32u << 20, .seed = 131, .zero_every = 9 };
	struct infill_session_options session = { .size = sizeof(session), .fill = row->fill,
						  .rate = row->rate };
	struct infill_server_options options = { .session = &session };
	struct fakevmm_shared *shared = fakevmm_shared_new(VMS);
	struct fakeserver server;
	uint64_t touches, end;
	pid_t vm[VMS], worker;

	rig_need_userfaultfd();
	fake_deadline("crash/supervisor_kill", 120);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	fakeimage_make(&image);
	options.image = image.path;
	fakeserver_start(&server, &options);
	vms_start(&server, &image, shared, vm);
	for (unsigned i = 0; i < VMS; i++)
		while (!atomic_load(&shared[i].touches) && !atomic_load(&shared[i].failed))
			fake_sleep_ms(1);
	worker = fakeserver_worker(&server);
	if (row->worker_first)
		worker = replace_worker(&server, worker);
	assert_int_equal(kill(server.supervisor, SIGKILL), 0);
	assert_true(fake_wait(server.supervisor, 10000) >= 0);
	touches = atomic_load(&shared[0].touches);
	end = fake_now_ns() + 20000000000u;
	while (atomic_load(&shared[0].touches) <= touches && fake_now_ns() < end)
		fake_sleep_ms(1);
	assert_true(atomic_load(&shared[0].touches) > touches);
	vms_finish(shared, vm);
	assert_ends(worker);
	close(server.stop_fd);
	munmap(shared, VMS * sizeof(*shared));
	fakeimage_remove(&image);
	fake_deadline("", 0);
}

int main(void)
{
	struct CMUnitTest tests[ROWS];

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, worker_goes_on_alone, NULL, NULL,
						(void *)(uintptr_t)&rows[i] };
	return _cmocka_run_group_tests("crash/supervisor_kill", tests, ROWS, NULL, NULL);
}
