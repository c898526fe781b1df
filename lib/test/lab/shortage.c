/* SPDX-License-Identifier: MIT */
/*
 * shortage.c: guest memory of two huge pages, of which the pool has one: what
 * needs the other waits, and if none comes it fails.  The guest never sees a
 * page of zeros in its place.
 */
#include "tests.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define HALF (PAGES / 2) /* pages of the guest in a huge page */
#define WAIT_MS 5000     /* libinfill's patience */

static void set_pool(unsigned pages)
{
	FILE *file = fopen("/proc/sys/vm/nr_hugepages", "we");
	unsigned got = 0;

	if (file) {
		fprintf(file, "%u\n", pages);
		fclose(file);
	}
	file = fopen("/proc/sys/vm/nr_hugepages", "re");
	CHECK(file && fscanf(file, "%u", &got) == 1 && got == pages, "%u huge pages, not %u", got,
	      pages);
	if (file)
		fclose(file);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A vCPU goes through all pages in their order; it waits for the second huge page. */
static void start_visit(struct rig *rig, struct visitor *v, pthread_t *thread)
{
	*v = (struct visitor){ .rig = rig, .step = 1 };
	pthread_create(thread, NULL, visit, v);
	for (unsigned ms = 0; ms < 60000 && counters_of(rig).faults < 2; ms += 10)
		usleep(10000);
	CHECK(counters_of(rig).faults == 2, "the second huge page was not asked for");
}

/* Is the second huge page in memory?  Looks, and touches nothing. */
static bool second_is_there(const struct rig *rig)
{
	unsigned char there = 1;

	CHECK(!mincore((char *)rig->memory + HUGE_BYTES, GUEST_PAGE, &there), "%m");
	return there & 1;
}

/* None comes: the vCPU's thread is told after a while, and so is who asks the session. */
void test_shortage(enum kind kind)
{
	uint64_t begin, took;
	struct rig rig;
	uint32_t sum;
	int ret;

	set_pool(1);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		begin = now_ms();
		ret = run_in_order(&rig, &sum);
		took = now_ms() - begin;
		CHECK(ret == -ENOMEM, "%d: %s", ret, infill_error());
		CHECK(strstr(infill_error(), "no huge page is free"), "%s", infill_error());
		CHECK(took >= WAIT_MS, "only after %llu ms", (unsigned long long)took);
		/* The guest stands before the page: it has read nothing there. */
		CHECK(kvm_api_memory_fault(rig.vcpu[0].run)->gpa == GUEST_MEMORY_GPA + HUGE_BYTES,
		      "another page");
		CHECK(!second_is_there(&rig), "it is there");
		CHECK(infill_session_error(rig.session, NULL) == -ENOMEM, "the session goes on");
		CHECK(run(&rig, 0, &sum) == -ENOMEM, "%s", infill_error());
	}
	tear_down(&rig);
	set_pool(0);
}

/* One becomes free in time, as when another VM ends. */
void test_shortage_passes(enum kind kind)
{
	struct visitor v;
	pthread_t thread;
	struct rig rig;

	set_pool(1);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		start_visit(&rig, &v, &thread);
		usleep(500000);
		CHECK(!second_is_there(&rig), "it is there");
		set_pool(2);
		pthread_join(thread, NULL);
		CHECK(!v.ret && v.sum == sum_of_all(), "%d, sum %u: %s", v.ret, v.sum,
		      infill_error());
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
	set_pool(0);
}

/* The session's thread, which fills ahead, is as patient as a vCPU. */
void test_shortage_of_fill(enum kind kind)
{
	struct rig rig;

	for (int comes = 0; comes < 2 && !bad; comes++) {
		set_pool(1);
		if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_ALL), 1)) {
			CHECK(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 1000) ==
				      -ETIMEDOUT, "%s", infill_error());
			set_pool(1 + (unsigned)comes);
			CHECK(infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 60000) ==
				      (comes ? 0 : -ENOMEM), "%s", infill_error());
			CHECK(second_is_there(&rig) == comes, "the second huge page");
		}
		if (comes) {
			visit_all(&rig, 1, 387);
			check_memory(&rig, 1, 1);
		}
		tear_down(&rig);
		set_pool(0);
	}
}

struct giver {
	struct rig *rig;
	int ret;
	_Atomic bool done;
};

static void *give_up(void *arg)
{
	struct giver *g = arg;

	g->ret = infill_session_discard(g->rig->session, GUEST_MEMORY_GPA + HUGE_BYTES, HUGE_BYTES);
	g->done = true;
	return NULL;
}

/* A page is given up while it is being filled: that is waited for, and then it is zero. */
void test_shortage_discard(enum kind kind)
{
	struct giver giver = { 0 };
	pthread_t thread, other;
	struct visitor v;
	struct rig rig;

	set_pool(1);
	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		CHECK(infill_session_discard(rig.session, GUEST_MEMORY_GPA, GUEST_PAGE) == -EINVAL,
		      "a part of a huge page: %s", infill_error());
		start_visit(&rig, &v, &thread);
		giver.rig = &rig;
		pthread_create(&other, NULL, give_up, &giver);
		usleep(500000);
		CHECK(!giver.done, "it did not wait: %d", giver.ret);
		/* One to spare: the guest may want another before the first is back in the pool. */
		set_pool(3);
		pthread_join(other, NULL);
		pthread_join(thread, NULL);
		CHECK(!giver.ret && !v.ret, "%d and %d", giver.ret, v.ret);
		for (uint32_t page = 0; page < PAGES && !bad; page++) {
			const uint32_t *at = rig.memory + (size_t)page * WORDS;

			if (page < HALF)
				check_page(&rig, page, false, 1, 1);
			for (uint32_t i = 0; page >= HALF && i < WORDS && !bad; i++)
				CHECK(i == SLOT_WORD ? at[i] <= 1 : !at[i], "page %u word %u: %u", page, i,
				      at[i]);
		}
	}
	tear_down(&rig);
	set_pool(0);
}
