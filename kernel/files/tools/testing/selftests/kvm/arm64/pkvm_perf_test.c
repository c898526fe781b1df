// SPDX-License-Identifier: GPL-2.0-only
/*
 * pkvm_perf_test - what it costs to give a guest memory ahead of time and to have
 * it go missing
 *
 * zap: memory of a VM that isn't protected is mapped, in pages or blocks, and
 * KVM_MEM_USERFAULT is enabled, which unmaps it.  Another vCPU prefaults a page
 * that is mapped meanwhile, over and over; its longest wait is for mmu_lock.
 *
 * donate: memory of a protected VM is donated, by the guest's faults and by a
 * prefault.
 */
#include <getopt.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "pkvm_util.h"
#include "pre_fault_util.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfault_util.h"

static u64 nr_bytes = SZ_64M;

static u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

struct waiter {
	struct kvm_vcpu *vcpu;
	u64 longest;
	u64 rounds;
	bool stop;
};

/* A prefault of what is mapped takes mmu_lock, and does nothing with it. */
static void *wait_for_lock(void *arg)
{
	struct waiter *waiter = arg;
	u64 start, took;

	while (!READ_ONCE(waiter->stop)) {
		start = now_us();
		pre_fault(waiter->vcpu, OTHER_GPA, getpagesize(), 0);
		took = now_us() - start;
		waiter->longest = max(waiter->longest, took);
		WRITE_ONCE(waiter->rounds, waiter->rounds + 1);
	}
	return NULL;
}

static void measure_zap(const char *name, enum vm_mem_backing_src_type src)
{
	u64 nr_pages = nr_bytes / getpagesize(), start, mapped, zapped;
	struct waiter waiter = {};
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	pthread_t thread;
	u64 *bitmap;

	vm = vm_create_with_vcpus(2, pft_guest_code, vcpus);
	pft_add_slot(vm, src, TEST_GPA, TEST_SLOT, nr_bytes, 0);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT, SZ_64K, 0);
	TEST_ASSERT(!madvise(pft_hva(vm), nr_bytes, MADV_POPULATE_WRITE),
		    "MADV_POPULATE_WRITE failed");
	bitmap = userfault_alloc_bitmap(nr_pages);
	waiter.vcpu = vcpus[1];
	pre_fault(waiter.vcpu, OTHER_GPA, getpagesize(), 0);

	start = now_us();
	pre_fault(vcpus[0], TEST_GPA, nr_bytes, pft_write_flag());
	mapped = now_us() - start;

	kvm_pthread_create(&thread, NULL, wait_for_lock, &waiter);
	while (READ_ONCE(waiter.rounds) < 10)
		sched_yield();
	start = now_us();
	userfault_enable(vm, TEST_SLOT, bitmap);
	zapped = now_us() - start;
	WRITE_ONCE(waiter.stop, true);
	kvm_pthread_join(thread, NULL);

	printf("zap %-8s %6lu MiB: mapped in %9lu us, zapped in %9lu us, longest wait %9lu us\n",
	       name, nr_bytes / SZ_1M, mapped, zapped, waiter.longest);
	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, nr_pages);
}

static void measure_donation(const char *name, enum vm_mem_backing_src_type src, bool prefault)
{
	u64 nr_pages = nr_bytes / getpagesize(), start, took;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	vm = pkvm_create_vm(&vcpu, src, nr_bytes);
	pft_populate(pft_hva(vm), nr_bytes);
	pkvm_call(vcpu, PKVM_READ, TEST_GVA, 0, 0);
	start = now_us();
	if (prefault)
		pre_fault(vcpu, TEST_GPA, nr_bytes, 0);
	else
		pkvm_call(vcpu, PKVM_READ, TEST_GVA, nr_pages, 0);
	took = now_us() - start;

	printf("donate %-8s by %-8s %6lu MiB: %9lu us, %6lu ns a page\n", name,
	       prefault ? "prefault" : "fault", nr_bytes / SZ_1M, took,
	       took * 1000 / nr_pages);
	kvm_vm_free(vm);
}

static void help(const char *name)
{
	printf("usage: %s [-b BYTES] [-z | -d]\n\n"
	       " -b: how much memory, a multiple of 2M with a suffix as in 64M, the default\n"
	       " -z: only zap\n"
	       " -d: only donate\n", name);
	exit(KSFT_FAIL);
}

int main(int argc, char *argv[])
{
	bool zap = true, donate = true;
	int opt;

	while ((opt = getopt(argc, argv, "b:dhz")) != -1) {
		switch (opt) {
		case 'b':
			nr_bytes = parse_size(optarg);
			break;
		case 'd':
			zap = false;
			break;
		case 'z':
			donate = false;
			break;
		default:
			help(argv[0]);
		}
	}
	if (!nr_bytes || nr_bytes % SZ_2M || optind < argc)
		help(argv[0]);

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));
	if (zap)
		measure_zap("pages", VM_MEM_SRC_ANONYMOUS);
	if (zap && thp_configured())
		measure_zap("blocks", VM_MEM_SRC_ANONYMOUS_THP);
	if (!donate)
		return 0;

	TEST_REQUIRE(pkvm_has_protected_vms());
	measure_donation("pages", VM_MEM_SRC_ANONYMOUS, false);
	measure_donation("pages", VM_MEM_SRC_ANONYMOUS, true);
	if (thp_configured())
		measure_donation("huge", VM_MEM_SRC_ANONYMOUS_THP, true);

	return 0;
}
