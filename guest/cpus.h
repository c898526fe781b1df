/* SPDX-License-Identifier: MIT */
/*
 * The guest's CPUs: a thread on each, which stays there.
 *
 * Nothing here makes a thread before it is asked to, so that what a guest of one CPU does costs no
 * more for it.
 */
#ifndef GUEST_CPUS_H
#define GUEST_CPUS_H

#include <pthread.h>

#define CPUS_MAX 64u

/* Threads that do one thing, one for each CPU. All zero: none. */
struct cpus_run {
	struct cpus_thread {
		struct cpus_run *run;
		unsigned int number;
		pthread_t id;
	} thread[CPUS_MAX];
	unsigned int threads;
	void (*fn)(unsigned int number, void *arg);
	void *arg;
};

/* Find the CPUs that are there; their number. Once, before what follows. */
unsigned int cpus_find(void);

/*
 * Have FN called on all CPUs at once, with their numbers, from 0 on without gaps, and ARG. Return
 * 0, or an error's number when there are not as many threads.
 */
int cpus_start(struct cpus_run *run, void (*fn)(unsigned int number, void *arg), void *arg);

/* Wait until all have returned; at once when none was started. */
void cpus_wait(struct cpus_run *run);

#endif
