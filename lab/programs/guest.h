/* SPDX-License-Identifier: MIT */
/*
 * guest.h: drives a Linux guest (guest/init.c) in infill-vmm, through pipes: boots it,
 * asks it on its console, saves it, ends it.  One thread.  What the guest says goes to
 * standard output as comments of TAP.  To be compiled beside a case's program: see the
 * key `program` in docs/lab.md.
 */
#ifndef LAB_PROGRAMS_GUEST_H
#define LAB_PROGRAMS_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VMM "/files/infill-vmm"
#define CONTROL "/tmp/control"
#define MEMORY "/tmp/memory"
#define STATE "/tmp/state"
#define TRACE "/tmp/trace"

/* A VMM that runs, and its console. */
struct guest {
	pid_t pid;
	int in, out;
	char line[8192]; /* the last one that it said */
	double started; /* now() before the VMM was */
	double said;    /* now() when `line` was read */
};

/* Seconds of CLOCK_MONOTONIC. */
double now(void);

/* How long one answer may take. */
double wait_seconds(void);

/* Start the VMM with these words; NULL ends them.  It dies with this process. */
void start(struct guest *guest, char **words);

/*
 * Wait for the VMM's end: the status that it ended with, 128 + N when signal N ended it; -1
 * when it had to be killed.
 */
int finish(struct guest *guest);

/* Have the next line, without its end, in guest->line.  False at the end, or after @deadline. */
bool read_line(struct guest *guest, double deadline);

/*
 * Wait for a line that begins with @begin; it is in guest->line.  False when it does not
 * come in time, or the guest or the VMM complains before it does.
 */
bool expect(struct guest *guest, const char *begin);

/* The same after @question was typed. */
bool ask(struct guest *guest, const char *question, const char *begin);

/* The same for an answer with a sum of data; false, too, when the guest's clock is wrong. */
bool ask_sum(struct guest *guest, const char *question, const char *begin, uint64_t *sum);

/*
 * Boot @kernel, of the case's files, with so many vCPUs, two options that say what its memory
 * is (NULL for none), and @append to the kernel's command line, until the guest's store is filled.
 */
bool boot(struct guest *guest, const char *kernel, const char *cpus, const char *const memory[2],
	  const char *append);

/* Save the guest, which ends it, to the files MEMORY and STATE with @suffix. */
bool take_snapshot(struct guest *guest, const char *suffix);

/* End it in order. */
bool power_off(struct guest *guest);

/* End it at once. */
void kill_guest(struct guest *guest);

#endif
