// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test the order that KVM_MEM_USERFAULT promises, with vCPUs that fault while
 * pages come and go:
 *
 *  - a page whose bit is clear has what was written before it was cleared,
 *  - a page whose bit was set before the memory was invalidated, by enabling the
 *    flag or by discarding the memory, can't be accessed afterwards.
 *
 * Each page of a generation has the number of the generation in it.  To begin a
 * new one all bits are set, the memory is invalidated, and only then the guest
 * is told that it mustn't see older pages any more.  Pages of the new generation
 * are provided by vCPUs' threads that exit for them, and by another thread that
 * nobody asked.
 */
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

#define STRESS_SLOT	10
#define STRESS_GPA	((gpa_t)SZ_4G)
#define STRESS_GVA	0xc0000000ul

#define NR_PAGES	512ul
#define NR_VCPUS	4
#define NR_FILLERS	1
#define DEFAULT_ROUNDS	40

enum memory {
	MEM_ANONYMOUS,
	MEM_SHMEM,
	MEM_THP,
	MEM_GUEST_MEMFD,
	NR_MEMORIES,
};

static const char * const names[] = {
	[MEM_ANONYMOUS]		= "anonymous memory",
	[MEM_SHMEM]		= "shmem",
	[MEM_THP]		= "THP",
	[MEM_GUEST_MEMFD]	= "guest_memfd",
};

/* Shared with the guest, on a page of its own. */
struct shared {
	/* Nothing older may be seen. */
	u64 oldest;
	u64 stop;
	u64 page_size;
};

static struct shared guest_shared;
static struct shared *shared;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[NR_VCPUS];
static u64 page_size;
static u64 *bitmap;
static void *mem;
static int gmem_fd = -1;

/* The generation that's being provided.  Changed with the lock held for writing. */
static u64 generation;
static pthread_rwlock_t lock;
/* The last generation of each page that somebody has taken on to provide. */
static u64 taken[NR_PAGES];
static bool fillers_stop;

static u64 value(u64 gen, u64 page)
{
	return gen << 32 | (page + 1);
}

static void guest_check(u64 page, u64 size)
{
	u64 oldest = __atomic_load_n(&guest_shared.oldest, __ATOMIC_SEQ_CST);
	u64 *p = (u64 *)(STRESS_GVA + page * size);
	u64 first, last;

	first = __atomic_load_n(&p[0], __ATOMIC_SEQ_CST);
	last = __atomic_load_n(&p[size / sizeof(u64) - 1], __ATOMIC_SEQ_CST);
	__GUEST_ASSERT((u32)first == page + 1 && (u32)last == page + 1,
		       "Page %lu has 0x%lx and 0x%lx", page, first, last);
	__GUEST_ASSERT(first >> 32 >= oldest && last >> 32 >= first >> 32,
		       "Page %lu is of generation %lu and %lu instead of %lu", page,
		       first >> 32, last >> 32, oldest);
}

static void guest_code(u64 id)
{
	u64 size = guest_shared.page_size;
	u64 page = id * 101;

	while (!READ_ONCE(guest_shared.stop)) {
		page = (page * 5 + 1) % NR_PAGES;
		guest_check(page, size);
	}
	GUEST_DONE();
}

/* Provide a page if it's missing and nobody else does.  Called with the lock held. */
static void __provide(u64 page)
{
	u64 *p = mem + page * page_size;
	u64 old, i;

	old = __atomic_load_n(&taken[page], __ATOMIC_RELAXED);
	if (old == generation ||
	    !__atomic_compare_exchange_n(&taken[page], &old, generation, false,
					 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;

	for (i = 0; i < page_size / sizeof(u64); i++)
		WRITE_ONCE(p[i], value(generation, page));
	userfault_clear(bitmap, page, 1);
}

static void provide(u64 page)
{
	pthread_rwlock_rdlock(&lock);
	__provide(page);
	pthread_rwlock_unlock(&lock);
}

static void pre_fault(struct kvm_vcpu *vcpu, u64 page)
{
	struct kvm_pre_fault_memory range = {
		.gpa = STRESS_GPA + page * page_size,
		.size = min_t(u64, 4, NR_PAGES - page) * page_size,
	};
	int ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);

	TEST_ASSERT(!ret || errno == EFAULT || errno == EAGAIN || errno == EINTR,
		    "KVM_PRE_FAULT_MEMORY failed, errno %d", errno);
}

static void *run_vcpu(void *arg)
{
	bool can_pre_fault = kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY);
	struct kvm_vcpu *vcpu = arg;
	struct ucall uc;
	u64 exits = 0;

	for (;;) {
		int ret = _vcpu_run(vcpu), err = errno;
		u64 page;

		if (!is_userfault_exit(vcpu, ret, err)) {
			TEST_ASSERT(!ret, KVM_IOCTL_ERROR(KVM_RUN, ret));
			break;
		}
		page = (vcpu->run->memory_fault.gpa - STRESS_GPA) / page_size;
		TEST_ASSERT(page < NR_PAGES, "Exit for gpa 0x%llx",
			    vcpu->run->memory_fault.gpa);
		provide(page);
		if (can_pre_fault && ++exits % 4 == 0)
			pre_fault(vcpu, page);
		if (userfault_is_set(bitmap, page))
			sched_yield();
	}
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(uc.cmd == UCALL_DONE, "Unexpected exit: %s",
		    exit_reason_str(vcpu->run->exit_reason));
	return NULL;
}

static void *run_filler(void *arg)
{
	u64 page = 0;

	while (!READ_ONCE(fillers_stop)) {
		page = (page + 7) % NR_PAGES;
		provide(page);
		if (page % 64 == 0)
			usleep(200);
	}
	return NULL;
}

static void discard(enum memory memory)
{
	const u64 size = NR_PAGES * page_size;

	switch (memory) {
	case MEM_GUEST_MEMFD:
		kvm_fallocate(gmem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size);
		break;
	case MEM_SHMEM:
		kvm_madvise(mem, size, MADV_REMOVE);
		break;
	default:
		kvm_madvise(mem, size, MADV_DONTNEED);
		break;
	}
}

/* Begin a generation by one of the ways to have set bits honoured. */
static void begin_generation(enum memory memory, int round)
{
	bool toggle = round % 2;
	u64 page;

	pthread_rwlock_wrlock(&lock);

	/* Nothing may be missing while the flag isn't set. */
	if (toggle) {
		for (page = 0; page < NR_PAGES; page++)
			__provide(page);
		userfault_disable(vm, STRESS_SLOT);
	}

	/* Nothing is provided while the lock is held, i.e. the bits remain. */
	userfault_set(bitmap, 0, NR_PAGES);
	if (toggle)
		userfault_enable(vm, STRESS_SLOT, bitmap);
	else
		discard(memory);

	generation++;
	__atomic_store_n(&shared->oldest, generation, __ATOMIC_SEQ_CST);

	/* Give those who'd see old memory, now that they mustn't, time to do so. */
	usleep(round % 4 * 500);
	if (toggle)
		discard(memory);

	pthread_rwlock_unlock(&lock);
}

static bool create_vm(enum memory memory)
{
	const u64 gmem_flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	const u64 size = NR_PAGES * page_size;
	int i;

	vm = vm_create_with_vcpus(NR_VCPUS, guest_code, vcpus);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_args_set(vcpus[i], 1, i);
	virt_map(vm, STRESS_GVA, STRESS_GPA, size / vm->page_size);
	shared = addr_gva2hva(vm, (gva_t)&guest_shared);
	*shared = (struct shared) { .page_size = page_size };
	generation = 0;
	memset(taken, 0, sizeof(taken));
	bitmap = userfault_alloc_bitmap(NR_PAGES);

	switch (memory) {
	case MEM_GUEST_MEMFD:
		if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & gmem_flags) != gmem_flags)
			return false;
		gmem_fd = vm_create_guest_memfd(vm, size, gmem_flags);
		vm_mem_add(vm, VM_MEM_SRC_ANONYMOUS, STRESS_GPA, STRESS_SLOT,
			   size / vm->page_size, KVM_MEM_GUEST_MEMFD, gmem_fd, 0);
		mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_fd);
		return true;
	case MEM_THP:
		if (!thp_configured())
			return false;
		vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_THP, STRESS_GPA,
					    STRESS_SLOT, size / vm->page_size, 0);
		break;
	default:
		vm_userspace_mem_region_add(vm, memory == MEM_SHMEM ? VM_MEM_SRC_SHMEM :
					    VM_MEM_SRC_ANONYMOUS,
					    STRESS_GPA, STRESS_SLOT, size / vm->page_size, 0);
		break;
	}
	mem = memslot2region(vm, STRESS_SLOT)->host_mem;
	return true;
}

static void free_vm(void)
{
	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, NR_PAGES);
	if (gmem_fd >= 0) {
		kvm_munmap(mem, NR_PAGES * page_size);
		close(gmem_fd);
		gmem_fd = -1;
	}
}

static void test_order(enum memory memory, int rounds)
{
	pthread_t threads[NR_VCPUS + NR_FILLERS];
	u64 exits = 0;
	int i;

	if (!create_vm(memory)) {
		pr_info("Skipping %s\n", names[memory]);
		free_vm();
		return;
	}

	begin_generation(memory, 1);

	fillers_stop = false;
	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_create(&threads[i], NULL, run_vcpu, vcpus[i]);
	for (; i < NR_VCPUS + NR_FILLERS; i++)
		kvm_pthread_create(&threads[i], NULL, run_filler, NULL);

	for (i = 0; i < rounds; i++) {
		usleep(5000 + i % 5 * 5000);
		begin_generation(memory, i);
	}

	WRITE_ONCE(shared->stop, 1);
	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_join(threads[i], NULL);
	WRITE_ONCE(fillers_stop, true);
	for (; i < NR_VCPUS + NR_FILLERS; i++)
		kvm_pthread_join(threads[i], NULL);

	for (i = 0; i < NR_VCPUS; i++)
		exits += vcpu_get_stat(vcpus[i], userfault_exits);
	pr_info("%s: %lu generations, %lu exits\n", names[memory], generation, exits);
	TEST_ASSERT(exits > rounds, "Too few exits");
	free_vm();
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-r rounds]\n", name);
	printf(" -r: how many generations of pages there are (default: %d)\n", DEFAULT_ROUNDS);
}

int main(int argc, char *argv[])
{
	pthread_rwlockattr_t attr;
	int rounds = DEFAULT_ROUNDS, opt, i;

	while ((opt = getopt(argc, argv, "hr:")) != -1) {
		switch (opt) {
		case 'r':
			rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 'h':
		default:
			help(argv[0]);
			exit(opt == 'h' ? 0 : 1);
		}
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	page_size = getpagesize();

	/* Who begins a generation must not be kept out by those who provide pages. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&lock, &attr);

	for (i = 0; i < NR_MEMORIES; i++)
		test_order(i, rounds);

	return 0;
}
