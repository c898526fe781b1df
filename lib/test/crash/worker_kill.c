// SPDX-License-Identifier: MIT
/*
 * worker_kill.c: the pager's worker is killed with SIGKILL again and again
 * while VMs touch, write and give back their memory and check every byte of
 * it.  That may cost them time and nothing else.
 *
 * $INFILL_CRASH_KILLS kills in all (200).  A kill counts only if the worker
 * had served faults since the kill before.  Moments: anywhere; just after a
 * handshake; while a REMOVE event is outstanding.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeserver.h"
#include "rig.h"

#define VMS 3
#define WAIT_MS 60000 /* how long a VM may take to end once it was told to */

struct row {
	const char *name;
	enum infill_backing backing;
	bool clone;
	uint32_t fill;
	uint64_t rate;
	unsigned share; /* of the kills, in percent */
};

static const struct row rows[] = {
	{ "anon, fill all, slow", INFILL_BACKING_ANON, false, INFILL_FILL_ALL, 8u << 20, 40 },
	{ "shmem, fill none", INFILL_BACKING_SHMEM, false, INFILL_FILL_NONE, 0, 20 },
	{ "anon, fill none", INFILL_BACKING_ANON, false, INFILL_FILL_NONE, 0, 20 },
	{ "clone, fill none", INFILL_BACKING_SHMEM, true, INFILL_FILL_NONE, 0, 20 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

struct crash {
	const struct row *row;
	struct fakeserver server;
	struct fakeimage image;
	struct fakevmm_shared *shared; /* VMS of them */
	pid_t vm[VMS];
	uint64_t random;
	unsigned kills, completed, started, idle;
	unsigned at[3]; /* kills of each kind */
	uint64_t touches;
};

static uint64_t crash_random(struct crash *crash, uint64_t below)
{
	crash->random = fake_mix(crash->random);
	return crash->random % below;
}

/* ---- VMs ---- */

static void vm_start(struct crash *crash, unsigned i)
{
	struct fakevmm_options options = {
		.image = &crash->image,
		.backing = crash->row->backing,
		.clone = crash->row->clone,
		.regions = 1 + i,
		.shared = &crash->shared[i],
	};
	struct fakevmm_load load = {
		.pattern = FAKEVMM_RANDOM,
		.threads = 2,
		.write_every = 9,
		.removers = 1,
		.remove_pages = 64,
		.remove_pause_us = 200,
		.seed = crash->started++,
	};

	memset(&crash->shared[i], 0, sizeof(crash->shared[i]));
	crash->vm[i] = fakevmm_fork(&options, &load, crash->server.socket,
				    300 + (unsigned)crash_random(crash, 2000));
	assert_true(crash->vm[i] > 0);
}

static void vm_judge(struct crash *crash, unsigned i, int status)
{
	const struct fakevmm_shared *shared = &crash->shared[i];

	crash->touches += shared->touches;
	crash->completed++;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && shared->verified)
		return;
	fakeserver_tail(&crash->server, 20);
	fail_msg("after %u kills VM %u ended with status 0x%x: %s", crash->kills, i, status,
		 shared->failed ? shared->error : "no reason given");
}

/* Start again what is over. */
static void vms_turn(struct crash *crash)
{
	for (unsigned i = 0; i < VMS; i++) {
		int status = fake_wait(crash->vm[i], 0);

		if (status == -ETIMEDOUT)
			continue;
		vm_judge(crash, i, status);
		vm_start(crash, i);
	}
}

static void vm_finish(struct crash *crash, unsigned i)
{
	int status;

	atomic_store(&crash->shared[i].finish, 1);
	status = fake_wait(crash->vm[i], WAIT_MS);
	if (status == -ETIMEDOUT)
		fail_msg("after %u kills VM %u does not end", crash->kills, i);
	vm_judge(crash, i, status);
}

/* ---- kills ---- */

/* Wait until the worker has served faults; its pid.  0: it did not, within the time. */
static pid_t worker_at_work(struct crash *crash)
{
	uint64_t end = fake_now_ns() + 30000000000u;
	uint64_t before = fakeserver_sum(&crash->server, "faults", NULL);

	while (fake_now_ns() < end) {
		vms_turn(crash);
		if (fakeserver_sum(&crash->server, "faults", NULL) != before)
			return fakeserver_worker(&crash->server);
		crash->idle++;
		usleep(500);
	}
	return 0;
}

static void moment_anywhere(struct crash *crash)
{
	usleep((useconds_t)crash_random(crash, 8000));
}

/* One VM ends; its successor has just sent its handshake. */
static void moment_after_handshake(struct crash *crash)
{
	unsigned i = (unsigned)crash_random(crash, VMS);

	vm_finish(crash, i);
	vm_start(crash, i);
	while (!atomic_load(&crash->shared[i].connected) && !atomic_load(&crash->shared[i].failed))
		;
	usleep((useconds_t)crash_random(crash, 1500));
}

static bool some_removing(const struct crash *crash)
{
	for (unsigned i = 0; i < VMS; i++)
		if (atomic_load(&crash->shared[i].removing))
			return true;
	return false;
}

static void moment_in_remove(struct crash *crash)
{
	uint64_t end = fake_now_ns() + 100000000;

	usleep((useconds_t)crash_random(crash, 3000));
	while (!some_removing(crash) && fake_now_ns() < end)
		;
}

static void kill_once(struct crash *crash)
{
	static void (*const moment[])(struct crash *) = { moment_anywhere, moment_after_handshake,
							  moment_in_remove };
	unsigned which = crash->kills % 8 == 3 ? 1 : crash->kills % 2 ? 2 : 0;
	pid_t worker = worker_at_work(crash);

	if (!worker) {
		fakeserver_tail(&crash->server, 20);
		fail_msg("after %u kills no worker serves", crash->kills);
	}
	moment[which](crash);
	crash->at[which]++;
	crash->kills++;
	if (!fakeserver_kill_worker(&crash->server, worker))
		fail_msg("after %u kills there is no new worker", crash->kills);
}

static void crash_start(struct crash *crash)
{
	struct infill_session_options session = {
		.size = sizeof(session),
		.fill = crash->row->fill,
		.rate = crash->row->rate,
	};
	struct infill_server_options options = {
		.image = crash->image.path,
		.session = &session,
		.flags = crash->row->clone ? INFILL_SERVER_SHARED : 0,
	};

	fakeserver_start(&crash->server, &options);
	crash->shared = fakevmm_shared_new(VMS);
	for (unsigned i = 0; i < VMS; i++)
		vm_start(crash, i);
}

static void killed_worker_costs_time_only(void **state)
{
	struct crash crash = {
		.row = *state,
		.image = { .bytes = 24u << 20, .seed = 111, .hole_every = 17, .zero_every = 17 },
		.random = 7,
	};
	unsigned wanted = (fakeserver_kills(200) * crash.row->share + 99) / 100;

	rig_need_userfaultfd();
	fake_deadline("crash/worker_kill", 60 + 2 * wanted);
	fakeimage_make(&crash.image);
	crash_start(&crash);
	while (crash.kills < wanted)
		kill_once(&crash);
	for (unsigned i = 0; i < VMS; i++)
		vm_finish(&crash, i);
	assert_int_equal(fakeserver_number(&crash.server, "restarts"), crash.kills);
	assert_int_equal(fakeserver_stop(&crash.server), 0);
	print_message("# %s: %u kills (%u anywhere, %u after a handshake, %u in a REMOVE), %u VMs, "
		      "%llu pages checked\n",
		      crash.row->name, crash.kills, crash.at[0], crash.at[1], crash.at[2],
		      crash.completed, (unsigned long long)crash.touches);
	munmap(crash.shared, VMS * sizeof(*crash.shared));
	fakeimage_remove(&crash.image);
	fake_deadline("", 0);
}

int main(void)
{
	struct CMUnitTest tests[ROWS];

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, killed_worker_costs_time_only, NULL,
						NULL, (void *)(uintptr_t)&rows[i] };
	return _cmocka_run_group_tests("crash/worker_kill", tests, ROWS, NULL, NULL);
}
