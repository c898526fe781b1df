/* SPDX-License-Identifier: MIT */
/*
 * pager.c: how much memory a pager process takes.  A pager is forked (the
 * same infill_server_run() as `infill serve`: supervisor and worker), and a
 * VMM is forked that hands it guest memory and touches all of it.  What
 * counts is what the pager's processes have for themselves: proportional
 * anonymous and shmem memory.  Their mapping of the image is page cache that
 * the kernel can take back at any time; it is given apart, as RSS.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"
#include "restored.h"

#define GROUP "memory of a pager"
#define PROCESSES 16
#define SAMPLE_US 5000
#define TIMEOUT_NS 120000000000ull

struct usage {
	uint64_t private_kib, rss_kib;
};

/* A field of /proc/PID/FILE in KiB; 0 if the process is gone. */
static uint64_t field(pid_t pid, const char *file, const char *name)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			kib = strtoull(line + strlen(name), NULL, 10);
	if (f)
		fclose(f);
	return kib;
}

/* PID and its children, grandchildren included. */
static size_t family(pid_t pid, pid_t *list, size_t room)
{
	char path[64];
	size_t count = 1;
	int child;
	FILE *f;

	list[0] = pid;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	f = fopen(path, "r");
	while (f && fscanf(f, "%d", &child) == 1 && count < room)
		count += family(child, list + count, room - count);
	if (f)
		fclose(f);
	return count;
}

static void look(pid_t pager, struct usage *most)
{
	struct usage now = { 0 };
	pid_t list[PROCESSES];
	size_t count = family(pager, list, PROCESSES);

	for (size_t i = 0; i < count; i++) {
		now.private_kib += field(list[i], "smaps_rollup", "Pss_Anon:");
		now.private_kib += field(list[i], "smaps_rollup", "Pss_Shmem:");
		now.rss_kib += field(list[i], "smaps_rollup", "Rss:");
	}
	if (now.private_kib > most->private_kib)
		most->private_kib = now.private_kib;
	if (now.rss_kib > most->rss_kib)
		most->rss_kib = now.rss_kib;
}

static pid_t fork_pager(const char *socket, const char *image, int stop, int ready)
{
	struct infill_session_options session = { .size = sizeof(session) };
	struct infill_server_options options = { .size = sizeof(options), .socket = socket,
						 .image = image, .session = &session,
						 .stop_fd = stop, .ready_fd = ready };
	pid_t pid = fork();
	int rc;

	if (pid)
		return pid;
	rc = infill_server_run(&options);
	if (rc)
		fprintf(stderr, "restore: pager: %s\n", infill_error());
	_exit(rc ? 1 : 0);
}

/* Be the VMM: hand over BYTES of guest memory, touch every page, say so on DONE, stay. */
static void be_vmm(const char *socket, size_t bytes, int done)
{
	struct infill_region region = { .size = sizeof(region), .length = bytes };
	struct infill_memory *memory;
	struct guest g;
	uint64_t sum = 0;

	guest_map(&g, BACKING_ANON, bytes, -1);
	region.hva = (uintptr_t)g.base;
	if (infill_memory_new(&memory) || infill_memory_add(memory, &region) ||
	    infill_handshake_send(socket, guest_register(&g), memory) < 0)
		fail("vmm", "%s", infill_error());
	for (size_t at = 0; at < bytes; at += CONTENT_PAGE)
		sum += *(volatile uint64_t *)(g.base + at);
	if (sum == 0 || eventfd_write(done, 1))
		_exit(1);
	for (;;)
		pause();
}

static pid_t fork_vmm(const char *socket, size_t bytes, int done)
{
	pid_t pid = fork();

	if (!pid)
		be_vmm(socket, bytes, done);
	return pid;
}

/* Look at PAGER until the VMM says on DONE that it has touched everything, or ends. */
static bool watch(pid_t pager, pid_t vmm, int done, struct usage *most)
{
	struct pollfd p = { done, POLLIN, 0 };
	uint64_t until = now_ns() + TIMEOUT_NS;

	while (now_ns() < until) {
		bool touched = poll(&p, 1, 0) > 0;

		look(pager, most);
		if (touched)
			return true;
		if (waitpid(vmm, NULL, WNOHANG) == vmm)
			return false;
		usleep(SAMPLE_US);
	}
	return false;
}

static bool listens(pid_t pager, int ready)
{
	struct pollfd p = { ready, POLLIN, 0 };
	uint64_t until = now_ns() + 10000000000ull;

	while (now_ns() < until) {
		if (poll(&p, 1, 10) > 0)
			return p.revents & POLLIN;
		if (waitpid(pager, NULL, WNOHANG) == pager)
			return false;
	}
	return false;
}

static void end_process(pid_t pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void end_pager(pid_t pager, int stop)
{
	eventfd_write(stop, 1);
	for (int i = 0; i < 500; i++) {
		if (waitpid(pager, NULL, WNOHANG))
			return;
		usleep(10000);
	}
	end_process(pager);
}

static void run_pager(struct row *row, const char *dir, const char *image, size_t bytes)
{
	struct usage most = { 0 };
	int stop = eventfd(0, 0), done = eventfd(0, 0), ready[2];
	char socket[600];
	pid_t pager, vmm = 0;

	if (stop < 0 || done < 0 || pipe(ready))
		fail("pager", "no file descriptors: %s", strerror(errno));
	snprintf(socket, sizeof(socket), "%s/pager.sock", dir);
	pager = fork_pager(socket, image, stop, ready[1]);
	close(ready[1]);
	if (!listens(pager, ready[0])) {
		figure_skip(row, "the pager did not start");
	} else {
		vmm = fork_vmm(socket, bytes, done);
		if (watch(pager, vmm, done, &most)) {
			figure_add(row, METRIC_PRIVATE_KIB, (double)most.private_kib);
			figure_add(row, METRIC_RSS_KIB, (double)most.rss_kib);
			figure_add(row, METRIC_LIMIT_KIB, 16384 + bytes / 1024 / 1000.0);
		} else {
			figure_skip(row, "the VMM did not get its memory");
		}
	}
	end_process(vmm);
	end_pager(pager, stop);
	close(ready[0]);
	close(stop);
	close(done);
}

static void add_ratio(struct row *row[2])
{
	double worst = 0, bytes = 0;

	for (int i = 0; i < 2; i++) {
		double most = series_max(&row[i]->metric[METRIC_PRIVATE_KIB]);
		double limit = series_median(&row[i]->metric[METRIC_LIMIT_KIB]);

		if (!row[i]->metric[METRIC_PRIVATE_KIB].count)
			return;
		bytes = most * 1024 > bytes ? most * 1024 : bytes;
		worst = most / limit > worst ? most / limit : worst;
	}
	ratio_set("pager_memory_bytes", bytes, 0, 0);
	ratio_set("pager_memory_vs_limit", worst, '<', 1);
}

void pager_run(const struct bench *b)
{
	size_t sparse_bytes = (size_t)4 << 30;
	char sparse[512], name[64];
	struct row *row[2];

	content_sparse(sparse, sizeof(sparse), b->dir, sparse_bytes);
	snprintf(name, sizeof(name), "%zu MiB, full", b->content.bytes >> 20);
	row[0] = figure_row(GROUP, name);
	row[1] = figure_row(GROUP, "4096 MiB, sparse");
	fflush(stdout); /* or the children print it again */
	for (unsigned r = 0; r < b->runs; r++) {
		progress(r, b->runs, GROUP);
		if (!row[0]->skipped[0])
			run_pager(row[0], b->dir, b->content.path, b->content.bytes);
		if (!row[1]->skipped[0])
			run_pager(row[1], b->dir, sparse, sparse_bytes);
	}
	progress(1, 1, "");
	unlink(sparse);
	add_ratio(row);
}
