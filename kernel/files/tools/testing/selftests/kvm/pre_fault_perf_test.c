// SPDX-License-Identifier: GPL-2.0
/*
 * pre_fault_perf_test - what KVM_PRE_FAULT_MEMORY costs, and what it saves
 *
 * A guest touches every page of a memslot once, with its stage-2 mapping absent
 * or in place.  For each way to get there, print the time per page that the
 * ioctl took, the time per page that the guest then took, and the faults that
 * the vCPU took meanwhile.  One vCPU, one thread: what's measured is the length
 * of the path, not contention.
 */
#include <getopt.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define TEST_SLOT	10
#define NO_PREFAULT	(~0ULL)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct perf_case {
	const char *name;
	/* Is there host memory before the guest runs? */
	bool populated;
	/* Flags for KVM_PRE_FAULT_MEMORY, or NO_PREFAULT. */
	u64 prefault;
	/* The guest's access. */
	bool write;
	/* Print the guest's second pass, over memory that is mapped. */
	bool again;
};

static const struct perf_case cases[] = {
	{ "read",			true,	NO_PREFAULT,			false },
	{ "read-prefaulted",		true,	0,				false },
	{ "read-mapped",		true,	NO_PREFAULT,			false, true },
	{ "write",			true,	NO_PREFAULT,			true },
	{ "write-prefaulted",		true,	0,				true },
	{ "write-mapped",		true,	NO_PREFAULT,			true, true },
	{ "new-read",			false,	NO_PREFAULT,			false },
	{ "new-write",			false,	NO_PREFAULT,			true },
	{ "new-write-prefaulted",	false,	0,				true },
	{ "new-write-prefaulted-write",	false,	KVM_PRE_FAULT_FLAG_WRITE,	true },
};

static u64 mem_size = SZ_16M;
static enum vm_mem_backing_src_type backing = DEFAULT_VM_MEM_SRC;

static void guest_code(u64 gva, u64 nr_pages, u64 page_size, u64 write)
{
	u64 i;

	/* What a first run costs, and the faults on this code, don't count. */
	GUEST_SYNC(0);

	for (;;) {
		for (i = 0; i < nr_pages; i++) {
			u64 *p = (u64 *)(gva + i * page_size);

			if (write)
				WRITE_ONCE(*p, i);
			else
				READ_ONCE(*p);
		}
		GUEST_SYNC(0);
	}
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

static u64 prefault(struct kvm_vcpu *vcpu, u64 gpa, u64 size, u64 flags)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = size,
		.flags = flags,
	};
	u64 start = now_ns();

	while (range.size)
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);

	return now_ns() - start;
}

/* Stage-2 faults on memory.  On arm64, a ucall is a fault as well, on MMIO. */
static u64 memory_faults(struct kvm_vcpu *vcpu)
{
	u64 faults = vcpu_get_stat(vcpu, pf_taken);

#ifdef __aarch64__
	faults -= vcpu_get_stat(vcpu, mmio_exit_user);
#endif
	return faults;
}

static u64 run_pass(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	u64 start, end;

	start = now_ns();
	vcpu_run(vcpu);
	end = now_ns();

	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	return end - start;
}

/* Map all that the guest touches besides the memory of interest. */
static void warm_up(struct kvm_vcpu *vcpu)
{
	struct userspace_mem_region *region = memslot2region(vcpu->vm, 0);

	prefault(vcpu, region->region.guest_phys_addr, region->region.memory_size,
		 KVM_PRE_FAULT_FLAG_WRITE);
	run_pass(vcpu);
}

static void run_case(const struct perf_case *c)
{
	u64 page_size = vm_guest_mode_params[VM_MODE_DEFAULT].page_size;
	u64 nr_pages = mem_size / page_size;
	u64 ioctl_ns = 0, run_ns, faults;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	gpa_t gpa;
	gva_t gva;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);

	gpa = align_down((vm->max_gfn - nr_pages) * page_size, SZ_1G);
	gva = gpa & ((1ULL << (vm->va_bits - 1)) - 1);

	vm_userspace_mem_region_add(vm, backing, gpa, TEST_SLOT, nr_pages, 0);
	virt_map(vm, gva, gpa, nr_pages);
	vcpu_args_set(vcpu, 4, gva, nr_pages, page_size, c->write);

	if (c->populated)
		TEST_ASSERT(!madvise(addr_gpa2hva(vm, gpa), mem_size,
				     MADV_POPULATE_WRITE),
			    "MADV_POPULATE_WRITE failed, errno %d", errno);

	warm_up(vcpu);

	if (c->prefault != NO_PREFAULT)
		ioctl_ns = prefault(vcpu, gpa, mem_size, c->prefault);

	if (c->again)
		run_pass(vcpu);

	faults = memory_faults(vcpu);
	run_ns = run_pass(vcpu);
	faults = memory_faults(vcpu) - faults;

	printf("%-28s pages %lu ioctl %.1f ns/page guest %.1f ns/page faults %lu\n",
	       c->name, nr_pages, (double)ioctl_ns / nr_pages,
	       (double)run_ns / nr_pages, faults);

	kvm_vm_free(vm);
}

static void run_cases(const char *only)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		if (only && strcmp(only, cases[i].name))
			continue;
		run_case(&cases[i]);
	}
}

static void help(const char *name)
{
	printf("Usage: %s [-h] [-s backing] [-b size] [-c case] [-r rounds]\n", name);
	printf(" -b: memory to touch, e.g. 16M\n");
	printf(" -c: only this case\n");
	printf(" -r: how often to go through all cases\n");
	backing_src_help("-s");
}

int main(int argc, char *argv[])
{
	const char *only = NULL;
	int rounds = 1;
	int opt;

	while ((opt = getopt(argc, argv, "hs:b:c:r:")) != -1) {
		switch (opt) {
		case 's':
			backing = parse_backing_src_type(optarg);
			break;
		case 'b':
			mem_size = parse_size(optarg);
			break;
		case 'c':
			only = optarg;
			break;
		case 'r':
			rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 'h':
			help(argv[0]);
			return 0;
		default:
			help(argv[0]);
			return 1;
		}
	}

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) &
		     KVM_PRE_FAULT_FLAG_WRITE);
	TEST_ASSERT(mem_size && !(mem_size % get_backing_src_pagesz(backing)),
		    "The size must be a multiple of the backing's page size");

	while (rounds--)
		run_cases(only);

	return 0;
}
