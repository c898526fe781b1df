// SPDX-License-Identifier: MIT
/*
 * userfault_kill.c: the worker is killed with SIGKILL again and again while
 * threads of VMs with KVM Userfault ask it for pages, read and write them.
 * That may cost them time and nothing else: no request is lost, no page is
 * wrong, and what was written to a page is never filled over.
 *
 * $INFILL_CRASH_KILLS kills in all (60).  A kill counts only if the worker had
 * been asked for a page since the kill before.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fakekvm.h"
#include "fakeserver.h"
#include "rig.h"

#define MIB (1u << 20)

struct row {
	const char *name;
	uint32_t fill;
	uint64_t rate;
	bool ordinary;
	unsigned share; /* of the kills, in percent */
};

static const struct row rows[] = {
	{ "fill none", INFILL_FILL_NONE, 0, false, 30 },
	{ "fill all, slow", INFILL_FILL_ALL, 8u << 20, false, 25 },
	{ "with ordinary memory", INFILL_FILL_NONE, 0, true, 25 },
	{ "with ordinary memory, fill all, slow", INFILL_FILL_ALL, 8u << 20, true, 20 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

struct crash {
	const struct row *row;
	struct fakeserver server;
	struct fakeimage image;
	struct fakekvm *kvm;
	uint64_t random, exits, touches;
	unsigned kills, vms;
};

static void vm_start(struct crash *crash)
{
	const struct fakekvm_options options = {
		.image = &crash->image, .regions = 2, .threads = 3, .ordinary = crash->row->ordinary,
	};

	crash->kvm = fakekvm_new(&options);
	if (fakekvm_connect(crash->kvm, crash->server.socket)) {
		fakeserver_tail(&crash->server, 20);
		fail_msg("after %u kills: connect: %s", crash->kills, infill_error());
	}
	fakekvm_start(crash->kvm, 3);
	crash->vms++;
}

static void judge(struct crash *crash, int rc)
{
	if (!rc)
		return;
	fakeserver_tail(&crash->server, 20);
	fail_msg("after %u kills: %s: %s", crash->kills, strerror(-rc), crash->kvm->wrong);
}

static void vm_finish(struct crash *crash)
{
	judge(crash, fakekvm_finish(crash->kvm));
	judge(crash, fakekvm_verify(crash->kvm));
	crash->exits += crash->kvm->exits;
	crash->touches += crash->kvm->touches;
	fakekvm_free(crash->kvm);
}

/* Wait until a page was asked for; a VM that has all of them is replaced. */
static void be_at_work(struct crash *crash)
{
	uint64_t before = crash->kvm->exits, end = fake_now_ns() + 30000000000u;

	while (crash->kvm->exits == before && fake_now_ns() < end) {
		if (!fakekvm_missing(crash->kvm)) {
			vm_finish(crash);
			vm_start(crash);
			before = 0;
		}
		usleep(100);
	}
	if (crash->kvm->exits == before)
		fail_msg("after %u kills: no page is asked for any more", crash->kills);
}

/* The last worker fills what its predecessors did not. */
static void be_filled(struct crash *crash)
{
	uint64_t end = fake_now_ns() + 30000000000u;

	while (fakekvm_missing(crash->kvm) && fake_now_ns() < end)
		fake_sleep_ms(10);
	if (fakekvm_missing(crash->kvm))
		fail_msg("after %u kills: %llu pages are not filled", crash->kills,
			 (unsigned long long)fakekvm_missing(crash->kvm));
}

static void kill_once(struct crash *crash)
{
	pid_t worker = fakeserver_worker_wait(&crash->server, 0, 20000);

	be_at_work(crash);
	crash->random = fake_mix(crash->random);
	usleep((useconds_t)(crash->random % 1500));
	crash->kills++;
	if (!fakeserver_kill_worker(&crash->server, worker))
		fail_msg("after %u kills there is no new worker", crash->kills);
}

static void asks_until_a_worker_answers(void **state)
{
	const struct row *row = *state;
	struct crash crash = {
		.row = row,
		.image = { .bytes = 64 * MIB, .seed = 77, .hole_every = 17, .zero_every = 17 },
		.random = 3,
	};
	struct infill_session_options session = { .size = sizeof(session), .fill = row->fill,
						  .rate = row->rate };
	struct infill_server_options options = { .session = &session };
	unsigned wanted = (fakeserver_kills(60) * row->share + 99) / 100;

	if (row->ordinary)
		rig_need_userfaultfd();
	fake_deadline("crash/userfault_kill", 60 + 2 * wanted);
	fakeimage_make(&crash.image);
	options.image = crash.image.path;
	options.on_error = INFILL_ON_ERROR_TELL;
	fakeserver_start(&crash.server, &options);
	vm_start(&crash);
	while (crash.kills < wanted)
		kill_once(&crash);
	if (row->fill == INFILL_FILL_ALL)
		be_filled(&crash);
	vm_finish(&crash);
	assert_int_equal(fakeserver_number(&crash.server, "restarts"), crash.kills);
	assert_int_equal(fakeserver_stop(&crash.server), 0);
	print_message("# %s: %u kills, %u VMs, %llu pages asked for, %llu checked\n", row->name,
		      crash.kills, crash.vms, (unsigned long long)crash.exits,
		      (unsigned long long)crash.touches);
	fakeimage_remove(&crash.image);
	fake_deadline("", 0);
}

int main(void)
{
	struct CMUnitTest tests[ROWS] = { 0 };

	for (size_t i = 0; i < ROWS; i++) {
		tests[i].name = rows[i].name;
		tests[i].test_func = asks_until_a_worker_answers;
		tests[i].initial_state = (void *)(uintptr_t)&rows[i];
	}
	return cmocka_run_group_tests_name("crash/userfault_kill", tests, NULL, NULL);
}
