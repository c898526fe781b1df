// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_PRE_FAULT_MEMORY of protected VMs: memory is donated ahead of time, each
 * failure has its errno and leaves nothing pinned or accounted, and the VM's
 * death gives back everything.
 */
#include <linux/capability.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "pkvm_test.h"
#include "pkvm_util.h"
#include "pre_fault_util.h"
#include "test_util.h"

#define NR_PAGES	64

static u64 page_size, mem_size;

static u64 guest_read(struct kvm_vcpu *vcpu, u64 first, u64 nr)
{
	return pkvm_call(vcpu, PKVM_READ, TEST_GVA + first * page_size, nr, 0);
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, enum vm_mem_backing_src_type src)
{
	struct kvm_vm *vm = pkvm_create_vm(vcpu, src, mem_size);

	pft_populate(pft_hva(vm), mem_size);

	return vm;
}

static void __test_first_run(enum vm_mem_backing_src_type src, u64 flags)
{
	struct pkvm_usage before = pkvm_get_usage();
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, src);

	TEST_ASSERT(vm_check_cap(vm, KVM_CAP_PRE_FAULT_MEMORY),
		    "A protected VM doesn't know of the ioctl");
	pkvm_assert_pages(&before, 0);
	pre_fault(vcpu, TEST_GPA, mem_size, flags);
	pkvm_assert_pages(&before, NR_PAGES);
	TEST_ASSERT(!pkvm_host_can_read(pft_hva(vm)), "The memory wasn't donated");

	pft_trace_clear();
	TEST_ASSERT_EQ(guest_read(vcpu, 0, NR_PAGES), pkvm_sum_of(0, NR_PAGES));
	if (pft_can_count_faults())
		TEST_ASSERT_EQ(pft_nr_faults(vcpu), 0);

	kvm_vm_free(vm);
}

/* The VM and the vCPU become known to the hypervisor by the ioctl. */
PKVM_TEST(first_run)
{
	__test_first_run(VM_MEM_SRC_ANONYMOUS, 0);
}

PKVM_TEST(first_run_write)
{
	__test_first_run(VM_MEM_SRC_ANONYMOUS, KVM_PRE_FAULT_FLAG_WRITE);
}

PKVM_TEST(shmem)
{
	__test_first_run(VM_MEM_SRC_SHMEM, 0);
}

/* A huge page of the host is donated page by page. */
PKVM_TEST(thp)
{
	const u64 size = 2 * SZ_2M;
	struct userspace_mem_region *slot0;
	struct kvm_vcpu *vcpu;
	struct pkvm_usage before;
	struct kvm_vm *vm;

	if (!thp_configured() || page_size != SZ_4K)
		SKIP(return, "no huge pages of 2M");

	vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS_THP, size);
	pft_populate(pft_hva(vm), size);
	slot0 = memslot2region(vm, 0);
	pre_fault(vcpu, 0, slot0->region.memory_size, 0);
	before = pkvm_get_usage();
	pre_fault(vcpu, TEST_GPA + SZ_1M, SZ_2M, 0);
	pkvm_assert_pages(&before, SZ_2M / page_size);
	TEST_ASSERT(pkvm_host_can_read(pft_hva(vm)), "More was donated than asked for");
	TEST_ASSERT_EQ(guest_read(vcpu, 0, size / page_size), pkvm_sum_of(0, size / page_size));
	pkvm_assert_pages(&before, size / page_size);

	kvm_vm_free(vm);
}

/* What the guest has already counts as done, and isn't taken twice. */
PKVM_TEST(repeat)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);
	struct pkvm_usage before = pkvm_boot(vcpu);

	TEST_ASSERT_EQ(guest_read(vcpu, 3, 5), pkvm_sum_of(3, 5));
	pkvm_assert_pages(&before, 5);
	pre_fault(vcpu, TEST_GPA, mem_size, 0);
	pkvm_assert_pages(&before, NR_PAGES);
	pre_fault(vcpu, TEST_GPA, mem_size, KVM_PRE_FAULT_FLAG_WRITE);
	pkvm_assert_pages(&before, NR_PAGES);
	/* Shared with the host it's the guest's as before. */
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_SHARE, TEST_GPA, 2, 0), 0);
	pre_fault(vcpu, TEST_GPA, mem_size, 0);
	TEST_ASSERT_EQ(guest_read(vcpu, 0, NR_PAGES), pkvm_sum_of(0, NR_PAGES));

	kvm_vm_free(vm);
}

/*
 * The guest's last fault was on a page that the host has spoiled.  It has nothing
 * to do with what is prefaulted next.
 */
PKVM_TEST(after_poison_fault)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	struct pkvm_usage before = pkvm_boot(vcpu);

	guest_read(vcpu, 0, 2);
	TEST_ASSERT_EQ(pkvm_kernel_read(pft_hva(vm)), 0);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -EFAULT);

	/* The spoiled one isn't replaced, it counts as donated. */
	pre_fault(vcpu, TEST_GPA, mem_size, 0);
	pkvm_assert_pages(&before, NR_PAGES);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -EFAULT);

	kvm_vm_free(vm);
}

/* A read of MMIO that userspace has yet to complete isn't disturbed. */
PKVM_TEST(pending_mmio)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);

	pkvm_boot(vcpu);
	TEST_ASSERT_EQ(_vcpu_run(vcpu), 0);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(!vcpu->run->mmio.is_write, "The guest doesn't ask what to do");
	*(u64 *)vcpu->run->mmio.data = PKVM_READ;
	pre_fault(vcpu, TEST_GPA, mem_size, 0);
	TEST_ASSERT_EQ(guest_read(vcpu, 0, NR_PAGES), pkvm_sum_of(0, NR_PAGES));

	kvm_vm_free(vm);
}

static void limit_locked_memory(struct pkvm_usage *usage, long pages)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	struct rlimit limit = { 0, RLIM_INFINITY };

	TEST_ASSERT_EQ(syscall(__NR_capget, &header, data), 0);
	data[0].effective &= ~BIT(CAP_IPC_LOCK);
	TEST_ASSERT_EQ(syscall(__NR_capset, &header, data), 0);

	limit.rlim_cur = (usage->locked + pages) * page_size;
	TEST_ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
}

/* The test's process is its own, and ends with it. */
PKVM_TEST(rlimit)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);
	struct pkvm_call call = {
		.op = PKVM_READ, .addr = TEST_GVA + 10 * page_size, .nr = 1,
	};
	struct pkvm_usage before = pkvm_boot(vcpu);

	limit_locked_memory(&before, 10);
	pre_fault_stops(vcpu, TEST_GPA, mem_size, 0, TEST_GPA + 10 * page_size, ENOMEM);
	pkvm_assert_pages(&before, 10);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -ENOMEM);
	pkvm_assert_pages(&before, 10);

	/* What's donated needs no more of it. */
	pre_fault(vcpu, TEST_GPA, 10 * page_size, 0);
	limit_locked_memory(&before, 11);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 10 * page_size);
	pre_fault_fails(vcpu, TEST_GPA + 11 * page_size, page_size, 0, ENOMEM);
	pkvm_assert_pages(&before, 11);

	kvm_vm_free(vm);
}

static void __test_unsupported(struct kvm_vm *vm, struct kvm_vcpu *vcpu, void *bad, u64 size)
{
	struct pkvm_call call = {
		.op = PKVM_READ, .addr = TEST_GVA + 4 * page_size, .nr = 1,
	};
	void *mem = kvm_mmap(mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct pkvm_usage before;

	pft_populate(mem, 4 * page_size);
	vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, 4 * page_size, mem);
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, TEST_GPA + 4 * page_size, size, bad);
	before = pkvm_boot(vcpu);

	pre_fault_stops(vcpu, TEST_GPA, 5 * page_size, 0, TEST_GPA + 4 * page_size,
			EOPNOTSUPP);
	pkvm_assert_pages(&before, 4);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -EIO);
	pkvm_assert_pages(&before, 4);

	kvm_vm_free(vm);
	kvm_munmap(mem, mem_size);
}

/* Pages of a file that isn't backed by swap can't be donated. */
PKVM_TEST(file)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm_with_vcpus(1, &vcpu, mem_size);
	int fd = __vm_create_guest_memfd(vm, mem_size, flags);
	void *mem;

	if (fd < 0)
		SKIP(return, "no guest_memfd to map");
	mem = kvm_mmap(mem_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	kvm_close(fd);
	__test_unsupported(vm, vcpu, mem, mem_size);
	kvm_munmap(mem, mem_size);
}

PKVM_TEST(hugetlb)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *mem;

	mem = mmap(NULL, SZ_2M, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	if (mem == MAP_FAILED)
		SKIP(return, "no huge pages of 2M");
	vm = pkvm_create_vm_with_vcpus(1, &vcpu, mem_size);
	__test_unsupported(vm, vcpu, mem, SZ_2M);
	kvm_munmap(mem, SZ_2M);
}

/* No memslot, and no memory behind one. */
PKVM_TEST(holes)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);
	struct pkvm_usage before = pkvm_boot(vcpu);
	void *mem = pft_hva(vm);

	pre_fault_stops(vcpu, TEST_GPA + mem_size - page_size, 2 * page_size, 0,
			TEST_GPA + mem_size, ENOENT);
	TEST_ASSERT(!mprotect(mem + 2 * page_size, page_size, PROT_READ), "mprotect() failed");
	kvm_munmap(mem + 5 * page_size, page_size);
	pre_fault_stops(vcpu, TEST_GPA, mem_size, 0, TEST_GPA + 2 * page_size, EFAULT);
	pre_fault_stops(vcpu, TEST_GPA + 3 * page_size, mem_size - 3 * page_size, 0,
			TEST_GPA + 5 * page_size, EFAULT);
	pkvm_assert_pages(&before, 5);
	kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	kvm_vm_free(vm);
}

static bool expect_sigbus;

static void sigbus(int signum)
{
	TEST_ASSERT(expect_sigbus, "A prefault of poisoned memory sent SIGBUS");
}

PKVM_TEST(hwpoison)
{
	struct sigaction sa = { .sa_handler = sigbus };
	const gpa_t poisoned = TEST_GPA + 3 * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);
	struct pkvm_usage before;
	int ret;

	sigaction(SIGBUS, &sa, NULL);
	/* Whoever injects poison gets a signal. */
	expect_sigbus = true;
	ret = madvise(pft_hva(vm) + 3 * page_size, page_size, MADV_HWPOISON);
	expect_sigbus = false;
	if (ret)
		SKIP(return, "can't poison memory, errno %d", errno);
	before = pkvm_boot(vcpu);

	pre_fault_stops(vcpu, TEST_GPA, mem_size, 0, poisoned, EHWPOISON);
	pkvm_assert_pages(&before, 3);
	pre_fault(vcpu, poisoned + page_size, 4 * page_size, 0);
	pkvm_assert_pages(&before, 7);

	kvm_vm_free(vm);
}

/* A page can't be given away twice, neither to two VMs nor twice to one. */
PKVM_TEST(not_the_hosts)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vms[2];
	struct pkvm_usage before;
	void *mem;
	int i;

	mem = kvm_mmap(mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < 2; i++) {
		vms[i] = pkvm_create_vm_with_vcpus(1, &vcpus[i], mem_size);
		pkvm_add_memory(vms[i], mem, mem_size);
		pkvm_boot(vcpus[i]);
	}
	vm_set_user_memory_region(vms[0], OTHER_SLOT, 0, OTHER_GPA, mem_size, mem);
	before = pkvm_get_usage();

	pre_fault(vcpus[0], TEST_GPA, 8 * page_size, 0);
	pre_fault_fails(vcpus[1], TEST_GPA, mem_size, 0, EPERM);
	pre_fault_fails(vcpus[0], OTHER_GPA, mem_size, 0, EPERM);
	pkvm_assert_pages(&before, 8);
	pre_fault(vcpus[1], TEST_GPA + 8 * page_size, 8 * page_size, 0);
	pkvm_assert_pages(&before, 16);

	/* It's to be had again once its owner is gone. */
	kvm_vm_free(vms[0]);
	pre_fault(vcpus[1], TEST_GPA, mem_size, 0);

	kvm_vm_free(vms[1]);
	kvm_munmap(mem, mem_size);
}

/*
 * Memory that userfaultfd has to provide.
 */
struct pager {
	int uffd;
	pthread_t vcpu_thread;
	bool done;
	/* Answer with a signal instead of a page. */
	bool signal;
};

static void *page(void *arg)
{
	struct pager *pager = arg;
	struct pollfd pfd = { .fd = pager->uffd, .events = POLLIN };
	struct uffdio_copy copy = { .len = page_size };
	struct uffd_msg msg;
	u64 *data;

	TEST_ASSERT(poll(&pfd, 1, -1) == 1, "poll() failed");
	TEST_ASSERT(read(pager->uffd, &msg, sizeof(msg)) == sizeof(msg),
		    "No message from userfaultfd");
	while (pager->signal && !READ_ONCE(pager->done)) {
		pthread_kill(pager->vcpu_thread, SIGUSR1);
		usleep(1000);
	}
	if (pager->signal)
		return NULL;

	data = aligned_alloc(page_size, page_size);
	TEST_ASSERT(data, "Out of memory");
	*data = 42;
	copy.src = (u64)data;
	copy.dst = msg.arg.pagefault.address & ~(page_size - 1);
	TEST_ASSERT(!ioctl(pager->uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed");
	free(data);
	return NULL;
}

static void nop(int sig)
{
}

PKVM_TEST(userfaultfd)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, mem_size);
	struct pager pager = { .vcpu_thread = pthread_self() };
	struct sigaction action = { .sa_handler = nop };
	struct pkvm_usage before;
	pthread_t thread;

	pager.uffd = pft_open_uffd(pft_hva(vm), mem_size);
	if (pager.uffd < 0)
		SKIP(return, "no userfaultfd");
	before = pkvm_boot(vcpu);

	/* For the guest's fault. */
	kvm_pthread_create(&thread, NULL, page, &pager);
	TEST_ASSERT_EQ(guest_read(vcpu, 0, 1), 42);
	kvm_pthread_join(thread, NULL);

	/* For a prefault. */
	kvm_pthread_create(&thread, NULL, page, &pager);
	pre_fault(vcpu, TEST_GPA + page_size, page_size, 0);
	kvm_pthread_join(thread, NULL);
	TEST_ASSERT_EQ(guest_read(vcpu, 1, 1), 42);
	pkvm_assert_pages(&before, 2);

	/* It never comes. */
	pager.signal = true;
	sigaction(SIGUSR1, &action, NULL);
	kvm_pthread_create(&thread, NULL, page, &pager);
	pre_fault_fails(vcpu, TEST_GPA + 2 * page_size, page_size, 0, EINTR);
	WRITE_ONCE(pager.done, true);
	kvm_pthread_join(thread, NULL);
	pkvm_assert_pages(&before, 2);

	kvm_close(pager.uffd);
	kvm_vm_free(vm);
}

/*
 * vCPUs fault on what other threads prefault, pages alone and many at once, from
 * boundaries of what KVM donates at once and from elsewhere: whoever is second
 * gives back what it has pinned.
 */
#define RACE_ROUNDS	12
#define NR_RACERS	2

struct pre_faulter {
	struct kvm_vcpu *vcpu;
	u64 nr_pages;
	unsigned int seed;
};

static void *pre_fault_all(void *arg)
{
	struct pre_faulter *p = arg;
	u64 page, nr;

	for (page = 0; page < p->nr_pages; page += nr) {
		/* Up to twice of what KVM donates at once, often few. */
		nr = 1 + rand_r(&p->seed) % (1 << rand_r(&p->seed) % 7);
		nr = min(nr, p->nr_pages - page);
		pre_fault(p->vcpu, TEST_GPA + page * page_size, nr * page_size, 0);
	}
	return NULL;
}

struct racing_reader {
	struct kvm_vcpu *vcpu;
	u64 first, nr_pages;
	u64 sum;
};

/* From some page to the last, and then those before it. */
static void *read_race(void *arg)
{
	struct racing_reader *r = arg;

	r->sum = guest_read(r->vcpu, r->first, r->nr_pages - r->first);
	r->sum += guest_read(r->vcpu, 0, r->first);
	return NULL;
}

static void __test_race(int round)
{
	/* As much as pkvm_boot() allows. */
	const u64 size = max_t(u64, mem_size, SZ_1M), nr = size / page_size;
	struct pre_faulter pre_faulters[NR_RACERS];
	struct racing_reader readers[NR_RACERS];
	struct kvm_vcpu *vcpus[2 * NR_RACERS];
	pthread_t threads[2 * NR_RACERS];
	struct pkvm_usage before;
	struct kvm_vm *vm;
	int i;

	vm = pkvm_create_vm_with_vcpus(2 * NR_RACERS, vcpus, size);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, size, 0);
	pft_populate(pft_hva(vm), size);
	for (i = 0; i < NR_RACERS; i++) {
		pre_faulters[i] = (struct pre_faulter) {
			vcpus[i], nr, NR_RACERS * round + i,
		};
		readers[i] = (struct racing_reader) {
			vcpus[NR_RACERS + i], i * nr / NR_RACERS, nr,
		};
		before = pkvm_boot(readers[i].vcpu);
	}

	for (i = 0; i < NR_RACERS; i++) {
		kvm_pthread_create(&threads[i], NULL, pre_fault_all, &pre_faulters[i]);
		kvm_pthread_create(&threads[NR_RACERS + i], NULL, read_race, &readers[i]);
	}
	for (i = 0; i < 2 * NR_RACERS; i++)
		kvm_pthread_join(threads[i], NULL);

	for (i = 0; i < NR_RACERS; i++)
		TEST_ASSERT_EQ(readers[i].sum, pkvm_sum_of(0, nr));
	pkvm_assert_pages(&before, nr);
	kvm_vm_free(vm);
}

PKVM_TEST(race)
{
	int round;

	for (round = 0; round < RACE_ROUNDS; round++)
		__test_race(round);
}

/*
 * Nobody is left to clean up when a VMM is killed.
 */
static void vmm(int fd, bool run)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pre_fault(vcpu, TEST_GPA, mem_size, 0);
	test_write(fd, "", 1);
	/* Long enough: the guest reads its memory over and over. */
	if (run)
		for (;;)
			guest_read(vcpu, 0, NR_PAGES);
	for (;;)
		pause();
	kvm_vm_free(vm);
}

static void __test_kill(bool run)
{
	struct pkvm_usage base = pkvm_get_usage(), usage;
	int fds[2], status;
	pid_t pid;
	char c;

	TEST_ASSERT_EQ(pipe(fds), 0);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid)
		vmm(fds[1], run);
	test_read(fds[0], &c, 1);
	usage = pkvm_get_usage();
	TEST_ASSERT(usage.pinned >= base.pinned + NR_PAGES, "The VMM has pinned %ld pages",
		    usage.pinned - base.pinned);

	if (run)
		usleep(100 * 1000);
	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed");
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "The VMM ended with status 0x%x before it was killed", status);
	pkvm_assert_released(&base);
	kvm_close(fds[0]);
	kvm_close(fds[1]);
}

PKVM_TEST(kill)
{
	__test_kill(false);
}

PKVM_TEST(kill_while_running)
{
	__test_kill(true);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));

	page_size = getpagesize();
	mem_size = NR_PAGES * page_size;

	return test_harness_run(argc, argv);
}
