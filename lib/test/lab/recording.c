/* SPDX-License-Identifier: MIT */
/*
 * recording.c: a trace that is recorded while vCPUs exit and others touch the
 * same memory at once, whose faults the userfaultfd reports: this process, and
 * where that is easy to have, KVM itself.
 */
#include "tests.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define HEADER_BYTES 56 /* infill-trace(7) */
#define COUNT_AT 48

/* What is missing of PAGE is read by this process, which waits for the userfaultfd. */
static void touch(struct rig *rig, uint32_t page)
{
	uint32_t word = *(volatile uint32_t *)(rig->memory + (size_t)page * WORDS);

	CHECK(word == word_of(page), "page %u: %u", page, word);
}

/* ... is written by KVM; by this process, if KVM has no reason to. */
static void touch_by_kvm(struct rig *rig, uint32_t page)
{
#ifdef __x86_64__
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} wall_clock = { { .nmsrs = 1 },
			 { .index = 0x4b564d00, /* MSR_KVM_WALL_CLOCK_NEW */
			   .data = GUEST_MEMORY_GPA + (uint64_t)page * GUEST_PAGE + 64 } };

	CHECK(ioctl(rig->vcpu[1].fd, KVM_SET_MSRS, &wall_clock) == 1, "%m");
#else
	touch(rig, page);
#endif
}

static void touch_by_vcpu(struct rig *rig, uint32_t page)
{
	uint32_t sum;

	guest_visit(&rig->vcpu[0], 1, page, 1, 0);
	CHECK(!run(rig, 0, &sum) && sum == word_of(page), "page %u: %s", page, infill_error());
}

/* The pages of the trace as it is in the file; their number. */
static uint64_t read_trace(struct rig *rig, uint32_t page[PAGES])
{
	int fd;
	uint64_t count = 0;

	CHECK(!infill_session_wait(rig->session, INFILL_WAIT_RECORDED, 60000), "%s", infill_error());
	fd = open(trace_path, O_RDONLY | O_CLOEXEC);
	CHECK(pread(fd, &count, sizeof(count), COUNT_AT) == sizeof(count), "%m");
	CHECK(count == PAGES, "%llu pages in the trace", (unsigned long long)count);
	CHECK(pread(fd, page, PAGES * 4, HEADER_BYTES) == PAGES * 4, "%m");
	close(fd);
	return count;
}

/* Each page once; AT says where. */
static void check_once(const uint32_t page[PAGES], uint32_t at[PAGES])
{
	for (uint32_t i = 0; i < PAGES; i++)
		at[i] = PAGES;
	for (uint32_t i = 0; i < PAGES && !bad; i++) {
		CHECK(page[i] < PAGES && at[page[i]] == PAGES, "place %u: page %u is there twice", i,
		      page[i]);
		if (!bad)
			at[page[i]] = i;
	}
}

/* One after the other, now by a vCPU and now by somebody else: that order is the trace's. */
void test_recording_order(enum kind kind)
{
	uint32_t page[PAGES];
	struct rig rig;

	unlink(trace_path);
	if (set_up(&rig, kind, OPTIONS(RECORD_ALL), 2)) {
		for (uint32_t i = 0; i < PAGES && !bad; i++) {
			uint32_t next = i * 387 % PAGES;

			if (kind == GUEST_MEMFD || i % 3 == 0)
				touch_by_vcpu(&rig, next);
			else if (i % 3 == 1)
				touch(&rig, next);
			else
				touch_by_kvm(&rig, next);
		}
		if (!bad)
			read_trace(&rig, page);
		for (uint32_t i = 0; i < PAGES && !bad; i++)
			CHECK(page[i] == i * 387 % PAGES, "place %u: page %u, not %u", i, page[i],
			      i * 387 % PAGES);
	}
	tear_down(&rig);
}

/* ---- at once ------------------------------------------------------------------- */

/* All pages, or every fourth, in an order of its own, by touch(). */
static void *touch_pages(void *arg)
{
	struct visitor *v = arg;

	for (uint32_t i = 0, page = v->start; i < PAGES; i++, page = (page + v->step) % PAGES)
		touch(v->rig, page);
	v->ret = 0;
	return NULL;
}

/* Two vCPUs and two threads of this process; a guest_memfd has vCPUs alone. */
static void touch_at_once(struct rig *rig, struct visitor visitor[VCPUS])
{
	pthread_t thread[VCPUS];

	for (unsigned i = 0; i < VCPUS; i++)
		pthread_create(&thread[i], NULL,
			       i < 2 || rig->kind == GUEST_MEMFD ? visit : touch_pages, &visitor[i]);
	for (unsigned i = 0; i < VCPUS; i++) {
		pthread_join(thread[i], NULL);
		CHECK(!visitor[i].ret, "thread %u: %d", i, visitor[i].ret);
	}
}

/* Each has its own quarter of the pages, which are in the trace in its order. */
void test_recording_threads(enum kind kind)
{
	uint32_t page[PAGES], at[PAGES];
	struct visitor visitor[VCPUS];
	struct rig rig;

	unlink(trace_path);
	if (set_up(&rig, kind, OPTIONS(RECORD_ALL), VCPUS)) {
		for (unsigned i = 0; i < VCPUS; i++)
			visitor[i] = (struct visitor){ .rig = &rig, .id = i, .start = i,
						       .step = 4 * (2 * i + 3) };
		touch_at_once(&rig, visitor);
		read_trace(&rig, page);
		check_once(page, at);
		for (unsigned i = 0; i < VCPUS && !bad; i++) {
			uint32_t last = i, next = (i + visitor[i].step) % PAGES;

			for (; next != i && !bad; last = next, next = (next + visitor[i].step) % PAGES)
				CHECK(at[last] < at[next], "thread %u: page %u before %u", i, next, last);
		}
	}
	tear_down(&rig);
}

/* All want the same pages, in nearly the same order: each is in the trace once. */
void test_recording_same_pages(enum kind kind)
{
	uint32_t page[PAGES], at[PAGES];
	struct visitor visitor[VCPUS];
	struct rig rig;

	for (unsigned round = 0; another_round(round, 8); round++) {
		unlink(trace_path);
		if (set_up(&rig, kind, OPTIONS(RECORD_ALL), VCPUS)) {
			for (unsigned i = 0; i < VCPUS; i++)
				visitor[i] = (struct visitor){ .rig = &rig, .id = i, .start = i,
							       .step = 2 * round + 1 };
			touch_at_once(&rig, visitor);
			read_trace(&rig, page);
			check_once(page, at);
			check_memory(&rig, kind == GUEST_MEMFD ? VCPUS : 2, 1);
		}
		tear_down(&rig);
	}
}
