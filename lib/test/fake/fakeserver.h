/* SPDX-License-Identifier: MIT */
/*
 * fakeserver.h: a pager daemon (infill_server_run()) in a process of its own,
 * and what it says about itself.  Test support; may change freely.
 */
#ifndef FAKESERVER_H
#define FAKESERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "infill.h"

struct fakeserver {
	pid_t supervisor;
	int stop_fd;       /* write end; closed to end the server */
	char socket[160];
	char log[160];     /* what it logged, a line each */
};

/*
 * Start a server; OPTIONS->socket, stop_fd, ready_fd and log are set here.
 * Returns when it listens.  Dies if it does not within 10 s.
 */
void fakeserver_start(struct fakeserver *server, const struct infill_server_options *options);

/* Ask it to end and wait for it: its wait status, or -ETIMEDOUT (then it is killed). */
int fakeserver_stop(struct fakeserver *server);

/* One value of the "stat" object; UINT64_MAX: not there, or no answer. */
uint64_t fakeserver_number(const struct fakeserver *server, const char *name);

/* The worker's pid, 0 if there is none now. */
pid_t fakeserver_worker(const struct fakeserver *server);

/* Sum of a counter over all VMs, and the number of VMs ("vms" in *COUNT, may be NULL). */
uint64_t fakeserver_sum(const struct fakeserver *server, const char *counter, unsigned *count);

/* A field of the VM whose pid is PID; false: no such VM.  TEXT may be NULL. */
bool fakeserver_vm(const struct fakeserver *server, pid_t pid, const char *field, uint64_t *number,
		   char *text, size_t size);

/* Wait until the worker is another than NOT.  Its pid, or 0. */
pid_t fakeserver_worker_wait(const struct fakeserver *server, pid_t not, unsigned timeout_ms);

/*
 * SIGKILL for the worker; wait until there is another.  False: there is none
 * within 20 s, and what the server logged is on stderr.
 */
bool fakeserver_kill_worker(const struct fakeserver *server, pid_t worker);

/* How often tests of the group crash kill: $INFILL_CRASH_KILLS, or OTHERWISE. */
unsigned fakeserver_kills(unsigned otherwise);

/* Write what the server logged to stderr, the last LINES lines of it. */
void fakeserver_tail(const struct fakeserver *server, unsigned lines);

#endif
