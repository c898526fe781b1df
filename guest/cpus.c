// SPDX-License-Identifier: MIT
/*
 * A thread on each CPU: pinned before it starts, so that it needs its CPU to be alive, and has its
 * timers there.
 */
#include <sched.h>

#include "cpus.h"

static unsigned int cpus[CPUS_MAX], found;

unsigned int cpus_find(void)
{
	cpu_set_t set;

	found = 0;
	if (sched_getaffinity(0, sizeof(set), &set) == 0)
		for (unsigned int cpu = 0; cpu < CPU_SETSIZE && found < CPUS_MAX; cpu++)
			if (CPU_ISSET(cpu, &set))
				cpus[found++] = cpu;
	return found;
}

static void *call(void *arg)
{
	struct cpus_thread *thread = arg;

	thread->run->fn(thread->number, thread->run->arg);
	return NULL;
}

static int start_one(struct cpus_thread *thread)
{
	pthread_attr_t attr;
	cpu_set_t set;
	int err;

	CPU_ZERO(&set);
	CPU_SET(cpus[thread->number], &set);
	pthread_attr_init(&attr);
	err = pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	if (!err)
		err = pthread_create(&thread->id, &attr, call, thread);
	pthread_attr_destroy(&attr);
	return err;
}

int cpus_start(struct cpus_run *run, void (*fn)(unsigned int number, void *arg), void *arg)
{
	int err = 0;

	run->fn = fn;
	run->arg = arg;
	for (run->threads = 0; run->threads < found && !err; run->threads += !err) {
		struct cpus_thread *thread = &run->thread[run->threads];

		thread->run = run;
		thread->number = run->threads;
		err = start_one(thread);
	}
	return err;
}

void cpus_wait(struct cpus_run *run)
{
	while (run->threads)
		pthread_join(run->thread[--run->threads].id, NULL);
}
