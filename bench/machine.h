/* SPDX-License-Identifier: MIT */
/*
 * machine.h: the machine that is measured on: clock, errors, progress, huge
 * pages, and its description.
 */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <jansson.h>

/* CLOCK_MONOTONIC in nanoseconds. */
static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* CPU time of all threads of this process so far, in nanoseconds. */
static inline uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Print "restore: WHAT: why" to stderr and end the program with status 1. */
void fail(const char *what, const char *format, ...)
	__attribute__((noreturn, format(printf, 2, 3)));

/* Zeroed and present memory, or fail().  Never freed but by machine_free(). */
void *machine_alloc(size_t bytes, const char *what);
void machine_free(void *memory, size_t bytes);

/* CPUs that this process may run on. */
unsigned machine_cpus(void);

/*
 * Have COUNT free 2 MiB pages in the pool, which goes back to its old size
 * when the program ends, by signals too.  NULL, or the reason why not.
 */
const char *machine_hugepages(size_t count);

/* What a reader needs to know about the machine; a new reference. */
json_t *machine_json(void);
void machine_print(void);

/* One line with a bar on stderr, if that is a terminal; DONE == TOTAL clears it. */
void progress(size_t done, size_t total, const char *what);

/* xorshift64*: reproducible, not random. */
uint64_t machine_random(uint64_t *state);

#endif
