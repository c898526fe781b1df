/* SPDX-License-Identifier: MIT */
/* external.c: a VM whose pager is another process, which dies. */
#include "tests.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeserver.h"
#include "usage.h"

#define KILLS 3

static void start_pager(struct fakeserver *server, enum infill_fill fill, uint64_t rate)
{
	const struct infill_session_options session = { .size = sizeof(session), .fill = fill,
							.rate = rate };
	const struct infill_server_options options = {
		.image = image_path, .session = &session, .on_error = INFILL_ON_ERROR_TELL,
	};

	fakeserver_start(server, &options);
}

static void kill_pager(struct fakeserver *server)
{
	pid_t worker = fakeserver_worker(server);

	kill(server->supervisor, SIGKILL);
	waitpid(server->supervisor, NULL, 0);
	kill(worker, SIGKILL);
	close(server->stop_fd);
}

/* ---- any VM -------------------------------------------------------------------- */

#define SLOW (512u << 10) /* bytes a second: what is behind the hole takes two seconds more */

/*
 * The pager is gone when the hole is settled, and pages behind it are missing:
 * these are an error, and nobody waits for the hole, which is zeros.
 */
void test_pager_gone(enum kind kind)
{
	const struct infill_session_options options = { .size = sizeof(options) };
	struct fakeserver server;
	uint64_t missing;
	struct rig rig;
	uint32_t sum;
	int ret;

	start_pager(&server, INFILL_FILL_ALL, SLOW);
	if (set_up_connected(&rig, kind, server.socket, &options, 1)) {
		while ((missing = counters_of(&rig).missing) > PAGES - ZERO_TO)
			usleep(1000);
		kill_pager(&server);
		CHECK(missing, "the pager was too fast");
		CHECK(infill_session_wait(rig.session, INFILL_WAIT_END, 60000) == -ECONNRESET, "%s",
		      infill_error());
		for (uint32_t page = HOLE_FROM; page < HOLE_TO && !bad; page++) {
			guest_visit(&rig.vcpu[0], 1, page, 1, 0);
			ret = run(&rig, 0, &sum);
			CHECK(!ret && !sum, "page %u: %d, %u: %s", page, ret, sum, infill_error());
		}
		guest_visit(&rig.vcpu[0], 1, PAGES - 1, 1, 0);
		ret = run(&rig, 0, &sum);
		CHECK(ret == -ECONNRESET, "the last page: %d: %s", ret, infill_error());
		if (kind != GUEST_MEMFD) {
			check_nobody_waits(&rig, PAGES - 1, true);
			check_nobody_waits(&rig, HOLE_FROM, false);
		}
	}
	tear_down(&rig);
}

/* ---- protected VMs ------------------------------------------------------------- */

/* A thread that kills the pager's worker whenever a part of the pages was filled. */
struct killer {
	struct rig *rig;
	struct fakeserver *server;
	unsigned kills;
};

static void *kill_workers(void *arg)
{
	struct killer *k = arg;

	while (k->kills < KILLS) {
		uint64_t left = (uint64_t)PAGES * (KILLS - k->kills) / (KILLS + 1);
		pid_t worker;

		while (counters_of(k->rig).missing > left)
			usleep(1000);
		worker = fakeserver_worker_wait(k->server, 0, 10000);
		if (!worker || !fakeserver_kill_worker(k->server, worker))
			break;
		k->kills++;
	}
	return NULL;
}

static void verify_and_kill(struct rig *rig, struct fakeserver *server)
{
	struct killer killer = { .rig = rig, .server = server };
	pthread_t thread;

	pthread_create(&thread, NULL, kill_workers, &killer);
	verify_all(rig, 2, 5, 0);
	pthread_join(thread, NULL);
	CHECK(killer.kills == KILLS, "%u workers killed", killer.kills);
}

/* Workers that are killed cost time: no page is filled twice, none is touched again. */
void test_protected_pager(enum kind kind)
{
	const struct infill_session_options options = { .size = sizeof(options),
							.flags = INFILL_SESSION_PREFAULT };
	long locked = usage_locked();
	struct fakeserver server;
	uint64_t filled;
	struct rig rig;

	for (enum infill_fill fill = INFILL_FILL_ALL; fill <= INFILL_FILL_NONE; fill += 2) {
		start_pager(&server, fill, 0);
		if (set_up_protected(&rig, kind, server.socket, &options, 2)) {
			if (fill == INFILL_FILL_NONE)
				verify_and_kill(&rig, &server);
			else
				verify_all(&rig, 2, 1, 0);
			CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
			      infill_error());
			/* Each page once, by whichever worker. */
			filled = fakeserver_sum(&server, "installs", NULL) +
				 fakeserver_sum(&server, "duplicates", NULL);
			CHECK(filled <= PAGES, "%llu pages filled", (unsigned long long)filled);
			CHECK(infill_session_discard(rig.session, GUEST_MEMORY_GPA, GUEST_PAGE) ==
				      -EOPNOTSUPP, "%s", infill_error());
			verify_all(&rig, 2, 5, 1);
		}
		tear_down(&rig);
		if (bad)
			fakeserver_tail(&server, 10);
		CHECK(!fakeserver_stop(&server), "the pager");
	}
	CHECK(usage_locked() == locked, "%ld pages are locked, not %ld", usage_locked(), locked);
}

/* With its supervisor the pager is gone: each vCPU is told, and what the guest has it keeps. */
void test_protected_pager_gone(enum kind kind)
{
	const struct infill_session_options options = { .size = sizeof(options) };
	struct fakeserver server;
	struct rig rig;
	uint32_t sum;
	int ret;

	start_pager(&server, INFILL_FILL_NONE, 0);
	if (set_up_protected(&rig, kind, server.socket, &options, 2)) {
		guest_visit(&rig.vcpu[0], 128, 0, 1, 0);
		CHECK(!run(&rig, 0, &sum), "%s", infill_error());
		kill_pager(&server);
		for (unsigned i = 0; i < VCPUS / 2; i++) {
			guest_visit(&rig.vcpu[i], PAGES, 0, 1, 1);
			ret = run(&rig, i, &sum);
			CHECK(ret == -ECONNRESET, "%d: %s", ret, infill_error());
		}
		guest_visit(&rig.vcpu[0], 128, 0, 1, 2);
		CHECK(!run(&rig, 0, &sum), "%s", infill_error());
	}
	tear_down(&rig);
}
