// SPDX-License-Identifier: MIT
/*
 * eight.c: a pager daemon with eight VMs at once, each a process of its own
 * that speaks Firecracker's protocol byte by byte as Firecracker does.
 * Clients that break the protocol are in bad-input.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fakeserver.h"
#include "rig.h"
#include "trace.h"

#define VMS 8

struct row {
	const char *name;
	enum infill_backing backing;
	uint64_t page_size;
	bool clone;
	unsigned threads; /* of the pager */
	struct infill_session_options session;
};

static const struct row rows[] = {
	{ .name = "8 VMs, fill none", .session.fill = INFILL_FILL_NONE },
	{ .name = "8 VMs, fill all" },
	{ .name = "8 VMs, fill all, slow, 4 threads", .session.rate = 2u << 20, .threads = 4 },
	{ .name = "8 VMs, shmem", .backing = INFILL_BACKING_SHMEM },
	{ .name = "8 VMs, hugetlb", .backing = INFILL_BACKING_HUGETLB, .page_size = FAKE_HUGE },
	{ .name = "8 clones", .backing = INFILL_BACKING_SHMEM, .clone = true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

struct eight {
	const struct row *row;
	struct fakeimage image;
	struct fakeserver server;
	struct infill_server_options options;
	struct infill_session_options session;
	struct fakevmm_shared *shared;
	unsigned touch_pause_us;
	pid_t vm[VMS];
};

static void eight_start(struct eight *e, unsigned run_ms, unsigned passes)
{
	fake_deadline("pager/eight", 120);
	rig_need_userfaultfd();
	e->image = (struct fakeimage){ .bytes = 16u << 20, .seed = 141, .hole_every = 8,
				       .zero_every = 8 };
	if (e->row->page_size == FAKE_HUGE) {
		e->image.grain = FAKE_HUGE;
		rig_need_hugepages(VMS * (e->image.bytes / FAKE_HUGE + 4));
	}
	fakeimage_make(&e->image);
	e->session = e->row->session;
	e->session.size = sizeof(e->session);
	e->options.image = e->image.path;
	e->options.session = &e->session;
	e->options.threads = e->row->threads;
	if (e->row->clone)
		e->options.flags |= INFILL_SERVER_SHARED;
	fakeserver_start(&e->server, &e->options);
	e->shared = fakevmm_shared_new(VMS);
	for (unsigned i = 0; i < VMS; i++) {
		struct fakevmm_options options = {
			.image = &e->image,
			.backing = e->row->backing,
			.page_size = e->row->page_size,
			.clone = e->row->clone,
			.regions = 1 + i % 3,
			.shared = &e->shared[i],
		};
		struct fakevmm_load load = {
			.pattern = i % 3,
			.threads = 1 + i % 2,
			.passes = passes,
			.write_every = 10,
			.removers = e->touch_pause_us ? 0 : i % 2,
			.remove_pages = e->row->page_size ? 2 : 32,
			.remove_pause_us = 1000,
			/* Overlapping removals refuse installs: they end before a wait counts as a hang. */
			.remove_ms = 10000,
			.touch_pause_us = e->touch_pause_us,
			.seed = i,
		};

		e->vm[i] = fakevmm_fork(&options, &load, e->server.socket, run_ms);
	}
}

static void eight_stop(struct eight *e)
{
	assert_int_equal(fakeserver_stop(&e->server), 0);
	munmap(e->shared, VMS * sizeof(*e->shared));
	fakeimage_remove(&e->image);
	fake_deadline("", 0);
}

static void assert_vm_ended_well(struct eight *e, unsigned i)
{
	int status = fake_wait(e->vm[i], 60000);

	if (status || !e->shared[i].verified)
		fail_msg("VM %u ended with status 0x%x: %s", i, status,
			 e->shared[i].failed ? e->shared[i].error : "no reason given");
}

static void eight_vms_are_served_at_once(void **state)
{
	struct eight e = { .row = *state };

	eight_start(&e, 0, 3);
	for (unsigned i = 0; i < VMS; i++)
		assert_vm_ended_well(&e, i);
	eight_stop(&e);
}

/* Stat has all of them, each by its pid, and their counters add up. */
static void stat_tells_each_vm(void **state)
{
	struct eight e = { .row = &rows[0] };
	unsigned count;

	(void)state;
	eight_start(&e, 0, 0);
	for (unsigned i = 0; i < VMS; i++)
		while (atomic_load(&e.shared[i].touches) < 100 && !atomic_load(&e.shared[i].failed))
			fake_sleep_ms(1);
	assert_true(fakeserver_sum(&e.server, "faults", &count) > VMS);
	assert_int_equal(count, VMS);
	for (unsigned i = 0; i < VMS; i++) {
		uint64_t pages = 0, faults = 0, size = 0, installs = 0;
		char text[16];

		assert_true(fakeserver_vm(&e.server, e.vm[i], "state", NULL, text, sizeof(text)));
		assert_string_equal(text, "running");
		fakeserver_vm(&e.server, e.vm[i], "pages", &pages, NULL, 0);
		fakeserver_vm(&e.server, e.vm[i], "page_size", &size, NULL, 0);
		fakeserver_vm(&e.server, e.vm[i], "faults", &faults, NULL, 0);
		fakeserver_vm(&e.server, e.vm[i], "installs", &installs, NULL, 0);
		assert_int_equal(pages * size, e.image.bytes);
		assert_true(faults > 0 && installs > 0);
	}
	for (unsigned i = 0; i < VMS; i++)
		atomic_store(&e.shared[i].finish, 1);
	for (unsigned i = 0; i < VMS; i++)
		assert_vm_ended_well(&e, i);
	eight_stop(&e);
}

static uint64_t time_of(const struct eight *e, unsigned i, const char *name)
{
	char *text = NULL, *vm, pid[32];
	uint64_t ns = UINT64_MAX;

	assert_int_equal(infill_server_stat(e->server.socket, false, 5000, &text), 0);
	snprintf(pid, sizeof(pid), "\"pid\":%d,", (int)e->vm[i]);
	vm = strstr(text, pid);
	if (vm)
		vm = strstr(vm, name);
	if (vm)
		ns = strtoull(vm + strlen(name) + 2, NULL, 10);
	free(text);
	return ns;
}

/* A mark is of one VM; who does not say of which one is told to. */
static void marks_are_of_the_vm_that_is_named(void **state)
{
	struct eight e = { .row = &rows[0] };
	uint64_t id = 0;

	(void)state;
	eight_start(&e, 0, 0);
	for (unsigned i = 0; i < VMS; i++)
		while (!atomic_load(&e.shared[i].touches) && !atomic_load(&e.shared[i].failed))
			fake_sleep_ms(1);
	assert_int_equal(infill_server_mark(e.server.socket, 0, INFILL_MARK_RESTORED, 5000), -EPROTO);
	rig_assert_says(infill_error(), "8 VMs are served: name one of them");
	assert_int_equal(infill_server_mark(e.server.socket, 99, INFILL_MARK_RESTORED, 5000), -EPROTO);
	assert_int_equal(infill_server_mark(e.server.socket, 1, 3, 5000), -EINVAL);
	assert_true(fakeserver_vm(&e.server, e.vm[5], "id", &id, NULL, 0));
	assert_int_equal(infill_server_mark(e.server.socket, id, INFILL_MARK_FIRST_WORK, 5000), 0);
	for (unsigned i = 0; i < VMS; i++) {
		assert_int_equal(time_of(&e, i, "restored_ns"), 0);
		assert_int_equal(time_of(&e, i, "first_work_ns") > 0, i == 5);
		atomic_store(&e.shared[i].finish, 1);
	}
	for (unsigned i = 0; i < VMS; i++)
		assert_vm_ended_well(&e, i);
	eight_stop(&e);
}

static bool log_says(const struct fakeserver *server, const char *fragment)
{
	char line[600];
	bool found = false;
	FILE *file = fopen(server->log, "re");

	assert_non_null(file);
	while (!found && fgets(line, sizeof(line), file))
		found = strstr(line, fragment);
	fclose(file);
	return found;
}

/* VM I touches COUNT pages from FIRST on, again and again, until it is told to finish. */
static void start_on_pages(struct eight *e, unsigned i, uint64_t first, uint64_t count)
{
	struct fakevmm_options options = { .image = &e->image, .shared = &e->shared[i] };
	struct fakevmm_load load = { .first = first, .count = count, .touch_pause_us = 100 };

	e->vm[i] = fakevmm_fork(&options, &load, e->server.socket, 0);
	while (atomic_load(&e->shared[i].touches) < count && !atomic_load(&e->shared[i].failed))
		fake_sleep_ms(1);
}

/* One file can hold the touches of one VM: another that comes meanwhile is only served. */
static void second_vm_is_not_recorded(void **state)
{
	char path[200];
	struct eight e = { .image = { .bytes = 16u << 20, .seed = 142 },
			   .session = { .size = sizeof(e.session), .record = path,
					.record_settle_ns = 600000000000, .record_pages = 150 } };
	struct infill_identity identity;
	struct infill_image *image;
	uint64_t rest = 0;
	struct trace trace;

	(void)state;
	rig_need_userfaultfd();
	fake_deadline("pager/eight", 120);
	snprintf(path, sizeof(path), "%s/trace", fake_dir());
	fakeimage_make(&e.image);
	assert_int_equal(infill_image_open(&image, e.image.path, NULL), 0);
	infill_image_identity(image, &identity);
	infill_image_close(image);
	e.options.image = e.image.path;
	e.options.session = &e.session;
	fakeserver_start(&e.server, &e.options);
	e.shared = fakevmm_shared_new(VMS);
	start_on_pages(&e, 0, 0, 100);
	assert_false(log_says(&e.server, "is not recorded"));
	start_on_pages(&e, 1, 1000, 100);
	assert_true(log_says(&e.server, "VM 2 ") && log_says(&e.server, "is not recorded"));
	/* It need not wait for the other's window. */
	while (!rest)
		assert_true(fakeserver_vm(&e.server, e.vm[1], "rest_pages", &rest, NULL, 0));
	for (unsigned i = 0; i < 2; i++) {
		atomic_store(&e.shared[i].finish, 1);
		assert_vm_ended_well(&e, i);
	}
	eight_stop(&e);
	assert_int_equal(trace_load(&trace, path, &identity), 0);
	for (size_t i = 0; i < trace.count; i++)
		assert_true(trace.run[i].offset + trace.run[i].length <= 1000 * FAKE_PAGE);
	assert_int_equal(trace.bytes, 150 * FAKE_PAGE);
	trace_free(&trace);
}

/* Half of them die in the middle of everything: the others do not notice. */
static void killed_vms_do_not_disturb_the_others(void **state)
{
	struct eight e = { .row = &rows[0] };

	(void)state;
	eight_start(&e, 0, 0);
	fake_sleep_ms(200);
	for (unsigned i = 0; i < VMS; i += 2) {
		assert_int_equal(kill(e.vm[i], SIGKILL), 0);
		assert_int_equal(fake_wait(e.vm[i], 10000), SIGKILL);
		fake_sleep_ms(20);
	}
	fake_sleep_ms(200);
	for (unsigned i = 1; i < VMS; i += 2)
		atomic_store(&e.shared[i].finish, 1);
	for (unsigned i = 1; i < VMS; i += 2)
		assert_vm_ended_well(&e, i);
	eight_stop(&e);
}

/* Wait until the worker has seen all of them end. */
static void all_ended(struct eight *e)
{
	for (unsigned i = 0; i < VMS; i++) {
		uint64_t end = fake_now_ns() + 20000000000u;
		char text[16] = "";

		do {
			fake_sleep_ms(5);
			fakeserver_vm(&e->server, e->vm[i], "state", NULL, text, sizeof(text));
		} while (strcmp(text, "ended") && fake_now_ns() < end);
		assert_string_equal(text, "ended");
	}
}

/* The files of a process, once they are BOUND at most or some seconds have passed. */
static int files_of(pid_t pid, int bound)
{
	uint64_t end = fake_now_ns() + 10000000000u;
	char command[128];
	int count;

	snprintf(command, sizeof(command), "ls /proc/%d/fd | wc -l", (int)pid);
	do {
		FILE *pipe = popen(command, "re");

		assert_non_null(pipe);
		assert_int_equal(fscanf(pipe, "%d", &count), 1);
		pclose(pipe);
	} while (count > bound && fake_now_ns() < end);
	return count;
}

/* VMs that come one after the other do not pile up: files, processes, memory. */
static void ended_vms_leave_nothing_behind(void **state)
{
	struct eight e = { .row = &rows[0] };
	int before = 0;
	pid_t worker;

	(void)state;
	e.options.max_vms = VMS;
	eight_start(&e, 0, 1);
	worker = fakeserver_worker(&e.server);
	for (unsigned round = 0; round < 4; round++) {
		struct fakevmm_options options = { .image = &e.image };
		struct fakevmm_load load = { .passes = 1, .count = 50 };

		for (unsigned i = 0; i < VMS; i++)
			assert_vm_ended_well(&e, i);
		all_ended(&e);
		if (!round)
			before = files_of(worker, INT_MAX);
		assert_true(files_of(worker, before) <= before);
		memset(e.shared, 0, VMS * sizeof(*e.shared));
		for (unsigned i = 0; i < VMS; i++) {
			options.shared = &e.shared[i];
			e.vm[i] = fakevmm_fork(&options, &load, e.server.socket, 0);
		}
	}
	for (unsigned i = 0; i < VMS; i++)
		assert_vm_ended_well(&e, i);
	eight_stop(&e);
}


/* The image is cut under eight VMs: each is killed, or each is told. */
static void changed_image_reaches_every_vm(void **state)
{
	uint32_t on_error = *(uint32_t *)*state;
	/*
	 * Slowly, and without removing pages, so that none is resident before all have
	 * begun: then it needs the image no more.
	 */
	struct eight e = { .row = &rows[0], .options.on_error = on_error,
			   .touch_pause_us = 20000 };
	char text[300] = "";

	eight_start(&e, 0, 0);
	for (unsigned i = 0; i < VMS; i++)
		while (atomic_load(&e.shared[i].touches) < 10 && !atomic_load(&e.shared[i].failed))
			fake_sleep_ms(1);
	assert_int_equal(truncate(e.image.path, 4096), 0);
	for (unsigned i = 0; i < VMS && on_error == INFILL_ON_ERROR_KILL; i++)
		assert_int_equal(fake_wait(e.vm[i], 20000), SIGKILL);
	for (unsigned i = 0; i < VMS && on_error == INFILL_ON_ERROR_TELL; i++) {
		uint64_t end = fake_now_ns() + 20000000000u;

		while (!fakeserver_vm(&e.server, e.vm[i], "error", NULL, text, sizeof(text)) ||
		       (!text[0] && fake_now_ns() < end))
			fake_sleep_ms(10);
		rig_assert_says(text, "changed");
		assert_int_equal(fake_wait(e.vm[i], 0), -ETIMEDOUT);
		kill(e.vm[i], SIGKILL);
		fake_wait(e.vm[i], 10000);
	}
	for (unsigned i = 0; i < VMS; i++)
		assert_int_equal(atomic_load(&e.shared[i].failed), 0);
	eight_stop(&e);
}

int main(void)
{
	static struct CMUnitTest tests[ROWS + 8];
	static uint32_t kill_them = INFILL_ON_ERROR_KILL, tell_them = INFILL_ON_ERROR_TELL;
	const struct CMUnitTest more[] = {
		cmocka_unit_test(stat_tells_each_vm),
		cmocka_unit_test(marks_are_of_the_vm_that_is_named),
		cmocka_unit_test(second_vm_is_not_recorded),
		cmocka_unit_test(killed_vms_do_not_disturb_the_others),
		cmocka_unit_test(ended_vms_leave_nothing_behind),
		{ "changed image: every VM is killed", changed_image_reaches_every_vm, NULL, NULL,
		  &kill_them },
		{ "changed image: every VM is told", changed_image_reaches_every_vm, NULL, NULL,
		  &tell_them },
	};

	for (size_t i = 0; i < ROWS; i++)
		tests[i] = (struct CMUnitTest){ rows[i].name, eight_vms_are_served_at_once, NULL,
						NULL, (void *)(uintptr_t)&rows[i] };
	memcpy(&tests[ROWS], more, sizeof(more));
	return _cmocka_run_group_tests("pager/eight", tests, ROWS + sizeof(more) / sizeof(more[0]),
				       NULL, NULL);
}
