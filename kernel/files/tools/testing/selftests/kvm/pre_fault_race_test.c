// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM_PRE_FAULT_MEMORY with what happens while it runs: signals, memslots
 * that come and go, and dirty rings that fill.  Nothing may hang, and what was
 * interrupted can be continued.
 */
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include <asm/barrier.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "pre_fault_util.h"
#include "processor.h"
#include "test_util.h"

/* The host's, which is what KVM_PRE_FAULT_MEMORY is in terms of. */
static u64 page_size;

FIXTURE(pre_fault) {
	bool warned;
};

FIXTURE_SETUP(pre_fault)
{
	self->warned = pft_begin();
}

FIXTURE_TEARDOWN(pre_fault)
{
	EXPECT_EQ(self->warned, pft_end());
}

#define PRE_FAULT_TEST(name)	TEST_F_TIMEOUT(pre_fault, name, PFT_TEST_SECONDS)

static void ignore_signal(int signum)
{
}

static void catch_sigusr1(void)
{
	struct sigaction sa = { .sa_handler = ignore_signal };

	sigaction(SIGUSR1, &sa, NULL);
}

/* Waits until someone waits for a page, and returns the page's address. */
static u64 uffd_wait(int fd)
{
	struct uffd_msg msg;
	ssize_t len = read(fd, &msg, sizeof(msg));

	TEST_ASSERT(len == sizeof(msg) && msg.event == UFFD_EVENT_PAGEFAULT,
		    "Wanted a page fault, got %ld bytes, errno %d", len, errno);
	return align_down(msg.arg.pagefault.address, page_size);
}

static void uffd_release(int fd, u64 page)
{
	struct uffdio_zeropage zero = {
		.range = { .start = page, .len = page_size },
	};

	TEST_ASSERT(!ioctl(fd, UFFDIO_ZEROPAGE, &zero), "UFFDIO_ZEROPAGE failed, errno %d", errno);
}

struct interrupter {
	pthread_t target;
	int uffd;
	int nr;
};

/* Interrupt the target each time it waits for a page. */
static void *interrupt_waiter(void *data)
{
	struct interrupter *interrupter = data;

	while (interrupter->nr--) {
		uffd_wait(interrupter->uffd);
		pthread_kill(interrupter->target, SIGUSR1);
	}
	return NULL;
}

/* A signal ends the wait for memory that userspace has yet to provide. */
PRE_FAULT_TEST(signal_while_blocked)
{
	const u64 size = 4 * page_size;
	const gpa_t missing = TEST_GPA + 2 * page_size;
	struct interrupter interrupter = { .target = pthread_self(), .nr = 3 };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	pthread_t thread;

	catch_sigusr1();
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	pft_populate(pft_hva(vm), 2 * page_size);
	interrupter.uffd = pft_open_uffd(pft_hva(vm) + 2 * page_size, 2 * page_size);
	if (interrupter.uffd < 0)
		SKIP(return, "no userfaultfd, errno %d", errno);

	kvm_pthread_create(&thread, NULL, interrupt_waiter, &interrupter);
	/* With progress, then without. */
	pre_fault_stops(vcpu, TEST_GPA, size, 0, missing, EINTR);
	pre_fault_fails(vcpu, missing, page_size, pft_write_flag(), EINTR);
	kvm_pthread_join(thread, NULL);

	kvm_close(interrupter.uffd);
	pre_fault(vcpu, missing, 2 * page_size, 0);

	kvm_vm_free(vm);
}

/* However often it is interrupted, a prefault that is repeated gets done. */
PRE_FAULT_TEST(signal_storm)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1,
	};
	const u64 size = SZ_16M;
	struct itimerspec soon = {};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	long delay_ns = 1000000;
	int interrupted = 0;
	timer_t timer;

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	catch_sigusr1();
	vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);

	TEST_ASSERT(!timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create() failed");

	while (interrupted < 20) {
		struct kvm_pre_fault_memory range = { .gpa = TEST_GPA, .size = size };
		int before = interrupted;

		while (range.size) {
			int ret;

			soon.it_value.tv_nsec = delay_ns;
			TEST_ASSERT(!timer_settime(timer, 0, &soon, NULL),
				    "timer_settime() failed");
			ret = __pre_fault(vcpu, &range);
			TEST_ASSERT(!ret || errno == EINTR, "Wanted EINTR, got errno %d", errno);
			interrupted += ret || range.size;

			/* The signal was first: how long a step takes isn't known. */
			if (ret)
				delay_ns = min(2 * delay_ns, NSEC_PER_SEC - 1);
		}

		/* And the other way round. */
		if (interrupted == before)
			delay_ns = max(delay_ns / 2, 1000L);
	}

	timer_delete(timer);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, false), 0);
	kvm_vm_free(vm);
}

struct reloader {
	struct kvm_vm *vm;
	u32 slot;
	int nr;
	bool move;
	bool done;
};

/* Delete and recreate a slot many times, or move TEST_SLOT away and back. */
static void *reload_slot(void *data)
{
	struct reloader *reloader = data;
	int i;

	for (i = 0; i < reloader->nr; i++) {
		if (reloader->move) {
			vm_mem_region_move(reloader->vm, reloader->slot, OTHER_GPA);
			vm_mem_region_move(reloader->vm, reloader->slot, TEST_GPA);
		} else {
			vm_mem_region_reload(reloader->vm, reloader->slot);
		}
	}
	WRITE_ONCE(reloader->done, true);
	return NULL;
}

static void test_slot_race(bool move)
{
	struct reloader reloader = { .slot = TEST_SLOT, .nr = 100, .move = move };
	const u64 size = SZ_4M;
	struct kvm_vcpu *vcpu;
	pthread_t thread;

	reloader.vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	pft_populate(pft_hva(reloader.vm), size);

	kvm_pthread_create(&thread, NULL, reload_slot, &reloader);
	while (!READ_ONCE(reloader.done)) {
		struct kvm_pre_fault_memory range = { .gpa = TEST_GPA, .size = size };
		int ret = __pre_fault(vcpu, &range);

		TEST_ASSERT(!ret || errno == EAGAIN || errno == ENOENT,
			    "Wanted EAGAIN or ENOENT, got errno %d", errno);
	}
	kvm_pthread_join(thread, NULL);

	pft_map_slot0(vcpu);
	pre_fault(vcpu, TEST_GPA, size, 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);

	kvm_vm_free(reloader.vm);
}

/* The slot that is prefaulted comes and goes. */
PRE_FAULT_TEST(slot_race)
{
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	test_slot_race(false);
}

/* It's here and there. */
PRE_FAULT_TEST(move_race)
{
	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	test_slot_race(true);
}

/* A slot that isn't prefaulted comes and goes, which is no reason to fail. */
PRE_FAULT_TEST(other_slot_race)
{
	const u64 size = SZ_4M;
	struct reloader reloader = { .slot = OTHER_SLOT, .nr = 100 };
	struct kvm_vcpu *vcpu;
	pthread_t thread;

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	reloader.vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	pft_populate(pft_hva(reloader.vm), size);
	pft_add_slot(reloader.vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT, size, 0);

	kvm_pthread_create(&thread, NULL, reload_slot, &reloader);
	while (!READ_ONCE(reloader.done))
		pre_fault(vcpu, TEST_GPA, size, 0);
	kvm_pthread_join(thread, NULL);

	pft_map_slot0(vcpu);
	pre_fault(vcpu, TEST_GPA, size, 0);
	TEST_ASSERT_EQ(pft_touch(vcpu, 0, size, true), 0);

	kvm_vm_free(reloader.vm);
}

#define NR_BLOCKED_PAGES	32

struct slot_creator {
	struct kvm_vm *vm;
	sem_t done;
};

static void *create_slot(void *data)
{
	struct slot_creator *creator = data;

	pft_add_slot(creator->vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT, SZ_64K, 0);
	sem_post(&creator->done);
	return NULL;
}

static void *pre_fault_blocked(void *data)
{
	pre_fault(data, TEST_GPA, NR_BLOCKED_PAGES * page_size, 0);
	return NULL;
}

/*
 * A memslot update waits for the step of a prefault that is under way, and not
 * for the rest of the range.  How many steps begin before the update waits is
 * up to the scheduler, i.e. give the update some time at each page, but demand
 * only that it is done before the prefault is.
 */
PRE_FAULT_TEST(memslot_update_is_not_stalled)
{
	struct slot_creator creator;
	pthread_t pre_faulter, slot_thread;
	struct kvm_vcpu *vcpu;
	struct timespec until;
	int uffd, i;
	bool done = false;
	u64 page;

	creator.vm = pft_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, NR_BLOCKED_PAGES * page_size);
	sem_init(&creator.done, 0, 0);
	uffd = pft_open_uffd(pft_hva(creator.vm), NR_BLOCKED_PAGES * page_size);
	if (uffd < 0)
		SKIP(return, "no userfaultfd, errno %d", errno);

	kvm_pthread_create(&pre_faulter, NULL, pre_fault_blocked, vcpu);
	page = uffd_wait(uffd);
	kvm_pthread_create(&slot_thread, NULL, create_slot, &creator);

	for (i = 1; i < NR_BLOCKED_PAGES; i++) {
		uffd_release(uffd, page);
		page = uffd_wait(uffd);

		if (!done) {
			clock_gettime(CLOCK_REALTIME, &until);
			until = timespec_add_ns(until, NSEC_PER_SEC / 5);
			done = !sem_timedwait(&creator.done, &until);
		}
	}
	TEST_ASSERT(done, "A memslot update had to wait for all of the prefault");

	uffd_release(uffd, page);
	kvm_pthread_join(pre_faulter, NULL);
	kvm_pthread_join(slot_thread, NULL);
	kvm_close(uffd);
	kvm_vm_free(creator.vm);
}

static void *delete_slot(void *data)
{
	vm_mem_region_delete(data, TEST_SLOT);
	return NULL;
}

static void *move_slot(void *data)
{
	vm_mem_region_move(data, TEST_SLOT, OTHER_GPA);
	return NULL;
}

static void *pre_fault_second_page(void *data)
{
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA + page_size, .size = page_size,
	};
	int ret = __pre_fault(data, &range);

	/* It's the old memslot that counts, unless something has to be retried. */
	TEST_ASSERT(!ret || errno == EAGAIN, "Wanted EAGAIN, got errno %d", errno);
	return NULL;
}

/*
 * A memslot can't go away as long as a prefault of one of its pages waits for
 * userspace.  That's EAGAIN for other prefaults, which don't know yet whether it's
 * gone for good.  Returns false without userfaultfd.
 */
static bool test_outgoing_slot(void *(*update)(void *vm))
{
	const u64 size = 3 * page_size;
	struct kvm_pre_fault_memory range;
	pthread_t pre_faulter, updater;
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	int uffd, i;
	void *mem;
	u64 page;

	vm = vm_create_with_vcpus(2, pft_guest_code, vcpus);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, size, 0);
	mem = pft_hva(vm);
	uffd = pft_open_uffd(mem + page_size, page_size);
	if (uffd < 0)
		return false;

	/*
	 * Under pKVM a vCPU that is new takes slots_lock, the first time, i.e.
	 * waits for the update.
	 */
	pre_fault(vcpus[0], TEST_GPA, page_size, 0);

	kvm_pthread_create(&pre_faulter, NULL, pre_fault_second_page, vcpus[1]);
	page = uffd_wait(uffd);
	kvm_pthread_create(&updater, NULL, update, vm);

	/* Until the update has begun it works; and what is mapped may always work. */
	do {
		kvm_madvise(mem, page_size, MADV_DONTNEED);
		range = (struct kvm_pre_fault_memory) { .gpa = TEST_GPA, .size = page_size };
	} while (!__pre_fault(vcpus[0], &range));
	TEST_ASSERT(errno == EAGAIN, "Wanted EAGAIN, got errno %d", errno);
	for (i = 0; i < 10; i++) {
		pre_fault_fails(vcpus[0], TEST_GPA, size, 0, EAGAIN);
		pre_fault_fails(vcpus[0], TEST_GPA + 2 * page_size, page_size,
				pft_write_flag(), EAGAIN);
	}

	uffd_release(uffd, page);
	kvm_pthread_join(pre_faulter, NULL);
	kvm_pthread_join(updater, NULL);
	pre_fault_fails(vcpus[0], TEST_GPA, size, 0, ENOENT);
	if (update == move_slot)
		pre_fault(vcpus[0], OTHER_GPA, size, 0);

	kvm_close(uffd);
	kvm_vm_free(vm);
	return true;
}

PRE_FAULT_TEST(slot_is_being_deleted)
{
	if (!test_outgoing_slot(delete_slot))
		SKIP(return, "no userfaultfd, errno %d", errno);
}

PRE_FAULT_TEST(slot_is_being_moved)
{
	if (!test_outgoing_slot(move_slot))
		SKIP(return, "no userfaultfd, errno %d", errno);
}

/* Take the dirty pages from the ring, count them in @seen, and reset the ring. */
static u32 collect_dirty_ring(struct kvm_vcpu *vcpu, u8 *seen, u32 nr_pages)
{
	struct kvm_dirty_gfn *gfns = vcpu_map_dirty_ring(vcpu);
	u32 nr = 0;

	for (;;) {
		struct kvm_dirty_gfn *gfn = &gfns[vcpu->fetch_index % vcpu->dirty_gfns_count];

		/* Pairs with KVM's release, when it has written the entry. */
		if (smp_load_acquire(&gfn->flags) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		TEST_ASSERT_EQ(gfn->slot, TEST_SLOT);
		TEST_ASSERT(gfn->offset < nr_pages, "Page %llu is not in the slot", gfn->offset);
		seen[gfn->offset]++;
		/* KVM may write the entry again from here on. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
		vcpu->fetch_index++;
		nr++;
	}
	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(vcpu->vm), nr);
	return nr;
}

static struct kvm_vm *create_dirty_ring_vm(struct kvm_vcpu **vcpu, u32 nr_gfns, u64 size)
{
	struct kvm_vm *vm = __vm_create(VM_SHAPE_DEFAULT, 1, size / MIN_PAGE_SIZE);

	vm_enable_dirty_ring(vm, nr_gfns * sizeof(struct kvm_dirty_gfn));
	*vcpu = vm_vcpu_add(vm, 0, pft_guest_code);
	kvm_arch_vm_finalize_vcpus(vm);
	virt_map(vm, TEST_GVA, TEST_GPA, size / vm->page_size);
	pft_map_slot0(*vcpu);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, size, KVM_MEM_LOG_DIRTY_PAGES);
	pft_populate(pft_hva(vm), size);
	return vm;
}

/*
 * Prefault a range of twice as many pages as the ring has entries.  Returns how
 * often the ring was full, after every page was found in it exactly once.
 */
static int fill_dirty_ring(struct kvm_vcpu *vcpu, u32 nr_gfns, u64 flags)
{
	const u32 nr_pages = 2 * nr_gfns;
	struct kvm_pre_fault_memory range = {
		.gpa = TEST_GPA, .size = nr_pages * page_size, .flags = flags,
	};
	u8 *seen = calloc(nr_pages, 1);
	int full = 0;
	u32 i;

	for (;;) {
		int ret = __pre_fault(vcpu, &range);

		TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_PRE_FAULT_MEMORY, ret, vcpu->vm);
		if (!range.size)
			break;
		pre_fault_fails(vcpu, range.gpa, range.size, flags, ENOSPC);
		TEST_ASSERT(collect_dirty_ring(vcpu, seen, nr_pages), "The ring is empty");
		full++;
	}
	collect_dirty_ring(vcpu, seen, nr_pages);

	for (i = 0; full && i < nr_pages; i++)
		TEST_ASSERT(seen[i] == 1, "Page %u was dirty %u times", i, seen[i]);

	free(seen);
	return full;
}

PRE_FAULT_TEST(dirty_ring)
{
	const u32 nr_gfns = max_t(u64, 1024, page_size / sizeof(struct kvm_dirty_gfn));
	const u64 size = 2 * nr_gfns * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int full;

	if (!pft_write_flag())
		SKIP(return, NO_WRITE);
	if (!kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		SKIP(return, "no dirty ring");
	vm = create_dirty_ring_vm(&vcpu, nr_gfns, size);

	/* A read may map memory writable, too, and does on x86. */
	full = fill_dirty_ring(vcpu, nr_gfns, 0);
#ifdef __x86_64__
	TEST_ASSERT(full >= 2, "The ring was full %d times", full);
#endif

	full = fill_dirty_ring(vcpu, nr_gfns, pft_write_flag());
	TEST_ASSERT(full >= 2, "The ring was full %d times", full);

	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	page_size = getpagesize();

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));

	return test_harness_run(argc, argv);
}
