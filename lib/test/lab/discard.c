/* SPDX-License-Identifier: MIT */
/*
 * discard.c: pages that the guest gives up while they are filled, as by a
 * balloon: zero from then on, and what the guest writes later stays.
 */
#include "tests.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

static uint64_t gpa_of(uint32_t page)
{
	return GUEST_MEMORY_GPA + (uint64_t)page * GUEST_PAGE;
}

static void discard(struct rig *rig, uint32_t page, uint32_t count)
{
	CHECK(!infill_session_discard(rig->session, gpa_of(page), (uint64_t)count * GUEST_PAGE),
	      "page %u, %u pages: %s", page, count, infill_error());
}

/* One vCPU through all pages; pages FROM to TO read as zero. */
static void visit_without(struct rig *rig, uint32_t from, uint32_t to)
{
	uint32_t sum = 0, want = 0;
	int ret = guest_visit(&rig->vcpu[0], PAGES, 5, 387, 0);

	ret = ret ? ret : run(rig, 0, &sum);
	for (uint32_t page = 0; page < PAGES; page++)
		want += page >= from && page < to ? 0 : word_of(page);
	CHECK(!ret, "%d: %s", ret, infill_error());
	CHECK(sum == want, "%u, not %u", sum, want);
}

/* Of the pages that are given up every second is there, and has a write of the guest. */
void test_discard(enum kind kind)
{
	const uint32_t from = 200, to = 300; /* the hole begins in between */
	struct infill_counters c;
	uint64_t exits;
	struct rig rig;
	uint32_t sum;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		guest_visit(&rig.vcpu[0], PAGES, 0, 2, 0); /* all even pages, twice */
		CHECK(!run(&rig, 0, &sum), "%s", infill_error());
		discard(&rig, from, to - from);
		c = counters_of(&rig);
		CHECK(c.removed == to - from, "%llu removed", (unsigned long long)c.removed);
		CHECK(c.missing == PAGES / 2 - (to - from) / 2, "%llu missing",
		      (unsigned long long)c.missing);
		for (uint32_t page = from; page < to; page++)
			check_page(&rig, page, true, 0, 0);
		exits = counters_of(&rig).faults;
		visit_without(&rig, from, to);
		exits = counters_of(&rig).faults - exits;
		for (uint32_t page = 0; page < PAGES; page++) {
			bool gone = page >= from && page < to;

			check_page(&rig, page, gone, 1, gone || page % 2 ? 1 : 3);
		}
		/* A vCPU does not have to ask for what is given up. */
		CHECK(exits == c.missing, "%llu exits", (unsigned long long)exits);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		/* And when there is no engine any more. */
		discard(&rig, from, to - from);
		visit_without(&rig, from, to);
		for (uint32_t page = from; page < to; page++)
			check_page(&rig, page, true, 1, 1);
	}
	tear_down(&rig);
}

/* Nothing is left to fill: the VM is independent, and all zero. */
void test_discard_all(enum kind kind)
{
	struct infill_counters c;
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		discard(&rig, 0, PAGES);
		CHECK(!infill_session_wait(rig.session, INFILL_WAIT_RESIDENT, 10000), "%s",
		      infill_error());
		visit_without(&rig, 0, PAGES);
		c = counters_of(&rig);
		CHECK(!c.faults && !c.read_bytes, "%llu exits, %llu bytes read",
		      (unsigned long long)c.faults, (unsigned long long)c.read_bytes);
		for (uint32_t page = 0; page < PAGES; page++)
			check_page(&rig, page, true, 1, 1);
	}
	tear_down(&rig);
}

/* Nothing is done where not all can be, and what cannot be freed keeps its content. */
void test_discard_refused(enum kind kind)
{
	static const struct {
		uint64_t from, length;
		int error;
	} rows[] = {
		{ 0, 0, -EINVAL },
		{ 0, GUEST_PAGE - 1, -EINVAL },
		{ 100, GUEST_PAGE, -EINVAL },
		{ 0, UINT64_MAX, -EINVAL },
		{ BYTES, GUEST_PAGE, -EFAULT },
		{ BYTES - GUEST_PAGE, 2 * GUEST_PAGE, -EFAULT },
	};
	const uint32_t page = 5;
	struct infill_counters c;
	struct rig rig;
	char *at;
	int ret;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
			ret = infill_session_discard(rig.session, GUEST_MEMORY_GPA + rows[i].from,
						     rows[i].length);
			CHECK(ret == rows[i].error, "row %zu: %d: %s", i, ret, infill_error());
		}
		at = (char *)rig.memory + (size_t)page * GUEST_PAGE;
		CHECK(!syscall(SYS_mlock2, at, GUEST_PAGE, MLOCK_ONFAULT), "%m");
		ret = infill_session_discard(rig.session, gpa_of(page), GUEST_PAGE);
		CHECK(ret == -EINVAL, "locked: %d: %s", ret, infill_error());
		CHECK(!munlock(at, GUEST_PAGE), "%m");
		c = counters_of(&rig);
		CHECK(!c.removed && c.missing == PAGES, "%llu removed, %llu missing",
		      (unsigned long long)c.removed, (unsigned long long)c.missing);
		visit_all(&rig, 1, 387);
		check_memory(&rig, 1, 1);
	}
	tear_down(&rig);
}

/* ---- against vCPUs and the fill ------------------------------------------------ */

#define ROUNDS 12
#define DISCARDS 48 /* a round */

/* Runs of pages at random, while others fill and write; false in GONE: never given up. */
static void discard_some(struct rig *rig, unsigned *seed, bool *gone)
{
	for (unsigned i = 0; i < DISCARDS; i++) {
		uint32_t page = (uint32_t)rand_r(seed) % PAGES, count = 1 + (uint32_t)rand_r(seed) % 16;

		count = count < PAGES - page ? count : PAGES - page;
		discard(rig, page, count);
		memset(gone + page, true, count);
	}
}

/* What was given up has nothing of the image, and all else has all of it. */
static void check_gone(struct rig *rig, const bool *gone)
{
	for (uint32_t page = 0; page < PAGES && !bad; page++) {
		const uint32_t *at = rig->memory + (size_t)page * WORDS;

		if (!gone[page])
			check_page(rig, page, false, VCPUS, 1);
		for (uint32_t i = 0; gone[page] && i < WORDS && !bad; i++)
			CHECK(i >= SLOT_WORD && i < SLOT_WORD + VCPUS ? at[i] <= 1 : !at[i],
			      "page %u word %u: %u", page, i, at[i]);
	}
}

/* What the guest writes when no page is given up any more stays. */
static void check_writes(struct rig *rig)
{
	static uint32_t before[PAGES];
	uint32_t sum;

	for (uint32_t page = 0; page < PAGES; page++)
		before[page] = rig->memory[(size_t)page * WORDS + SLOT_WORD];
	guest_visit(&rig->vcpu[0], PAGES, 3, 387, 0);
	CHECK(!run(rig, 0, &sum), "%s", infill_error());
	for (uint32_t page = 0; page < PAGES && !bad; page++)
		CHECK(rig->memory[(size_t)page * WORDS + SLOT_WORD] == before[page] + 1, "page %u",
		      page);
}

/* Pages are touched by this process as well, which waits for each that is missing. */
static void *look(void *arg)
{
	const struct rig *rig = arg;

	for (uint32_t i = 0, page = 0; i < PAGES && rig->kind != GUEST_MEMFD; i++) {
		uint32_t word = *(volatile uint32_t *)(rig->memory + (size_t)page * WORDS);

		CHECK(!word || word == word_of(page), "page %u: %u", page, word);
		page = (page + 59) % PAGES;
	}
	return NULL;
}

static void discard_round(enum kind kind, enum infill_fill fill, unsigned *seed)
{
	struct visitor visitor[VCPUS];
	pthread_t thread[VCPUS], other;
	bool gone[PAGES] = { false };
	struct rig rig;

	if (set_up(&rig, kind, OPTIONS(.fill = fill), VCPUS)) {
		for (unsigned i = 0; i < VCPUS; i++) {
			visitor[i] = (struct visitor){ .rig = &rig, .id = i, .start = i * 37,
						       .step = 1 + 2 * i };
			pthread_create(&thread[i], NULL, visit, &visitor[i]);
		}
		pthread_create(&other, NULL, look, &rig);
		discard_some(&rig, seed, gone);
		pthread_join(other, NULL);
		for (unsigned i = 0; i < VCPUS; i++) {
			pthread_join(thread[i], NULL);
			CHECK(!visitor[i].ret, "vCPU %u: %d", i, visitor[i].ret);
		}
		check_gone(&rig, gone);
		check_writes(&rig);
	}
	tear_down(&rig);
}

void test_discard_race(enum kind kind)
{
	unsigned seed = 1;

	for (unsigned i = 0; another_round(i, ROUNDS); i++)
		discard_round(kind, i % 2 ? INFILL_FILL_ALL : INFILL_FILL_NONE, &seed);
}

/* ---- what waits meanwhile -------------------------------------------------------- */

struct toucher {
	struct rig *rig;
	uint32_t page;
	unsigned delay_us;
};

static void *touch_later(void *arg)
{
	const struct toucher *t = arg;
	uint32_t word;

	usleep(t->delay_us);
	word = *(volatile uint32_t *)(t->rig->memory + (size_t)t->page * WORDS);
	CHECK(!word || word == word_of(t->page), "page %u: %u", t->page, word);
	return NULL;
}

/*
 * A thread waits for the userfaultfd on a page that is being given up; it runs on.
 * Half of the pages are there, so that freeing them takes a while.
 */
void test_discard_touched(enum kind kind)
{
	struct toucher toucher = { .page = 333 };
	pthread_t thread;
	struct rig rig;
	uint32_t sum;

	for (unsigned i = 0; kind != GUEST_MEMFD && another_round(i, 24); i++) {
		if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
			guest_visit(&rig.vcpu[0], PAGES, 0, 2, 0);
			CHECK(!run(&rig, 0, &sum), "%s", infill_error());
			toucher.rig = &rig;
			toucher.delay_us = i * 7 % 24 * 25; /* short and long ones by turns */
			pthread_create(&thread, NULL, touch_later, &toucher);
			discard(&rig, 0, PAGES / 2);
			pthread_join(thread, NULL);
			check_page(&rig, toucher.page, true, 0, 0);
		}
		tear_down(&rig);
	}
}

/*
 * madvise() by the VMM itself: what was there reads as zero, what was missing
 * comes from the image all the same.
 */
void test_dropped(enum kind kind)
{
	const uint32_t from = 100, to = 140;
	struct rig rig;
	uint32_t sum;

	if (set_up(&rig, kind, OPTIONS(.fill = INFILL_FILL_NONE), 1)) {
		guest_visit(&rig.vcpu[0], PAGES, 0, 2, 0);
		CHECK(!run(&rig, 0, &sum), "%s", infill_error());
		CHECK(!madvise(rig.memory + (size_t)from * WORDS, (to - from) * GUEST_PAGE,
			       kind == ANON ? MADV_DONTNEED : MADV_REMOVE), "%m");
		guest_visit(&rig.vcpu[0], PAGES, 5, 387, 0);
		CHECK(!run(&rig, 0, &sum), "%s", infill_error());
		for (uint32_t page = 0; page < PAGES; page++) {
			bool gone = page >= from && page < to && page % 2 == 0;

			check_page(&rig, page, gone, 1, gone || page % 2 ? 1 : 3);
		}
	}
	tear_down(&rig);
}
