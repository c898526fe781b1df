// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_MEM_USERFAULT of protected VMs.  A page can be missing until the guest has
 * it, and never again: the flag is set before the hypervisor knows the VM, or
 * with a new memslot, and can be cleared at any time.
 */
#include <linux/sizes.h>
#include <pthread.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "pkvm_test.h"
#include "pkvm_util.h"
#include "pre_fault_util.h"
#include "test_util.h"
#include "userfault_util.h"

#define NR_PAGES	64

static u64 page_size, mem_size;

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, u64 **bitmap)
{
	struct kvm_vm *vm = pkvm_create_vm(vcpu, VM_MEM_SRC_ANONYMOUS, mem_size);

	*bitmap = userfault_alloc_bitmap(NR_PAGES);
	userfault_set(*bitmap, 0, NR_PAGES);

	return vm;
}

static void free_vm(struct kvm_vm *vm, u64 *bitmap)
{
	kvm_vm_free(vm);
	userfault_free_bitmap(bitmap, NR_PAGES);
}

/* Fill, and clear last: from then on the page may be the guest's. */
static void provide(struct kvm_vm *vm, u64 *bitmap, u64 page)
{
	WRITE_ONCE(*(u64 *)(pft_hva(vm) + page * page_size), page + 1);
	userfault_clear(bitmap, page, 1);
}

static void assert_exit(struct kvm_vcpu *vcpu, int ret, gpa_t gpa)
{
	TEST_ASSERT(is_userfault_exit(vcpu, ret ? -1 : 0, -ret), "Wanted an exit, got %d", ret);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, gpa);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.size, page_size);
}

PKVM_TEST(capability)
{
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	TEST_ASSERT_EQ(userfault_cap(vm), 1);
	free_vm(vm, bitmap);
}

/* Every page exits once, is provided, and is the guest's, and only then pinned. */
PKVM_TEST(first_touch)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = NR_PAGES };
	struct kvm_vcpu *vcpu;
	struct pkvm_usage before;
	u64 *bitmap, page;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	userfault_enable(vm, TEST_SLOT, bitmap);
	before = pkvm_boot(vcpu);
	for (page = 0; page < NR_PAGES; page++) {
		assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA + page * page_size);
		/* Still missing. */
		assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA + page * page_size);
		pkvm_assert_pages(&before, page);
		provide(vm, bitmap, page);
	}
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, NR_PAGES * (NR_PAGES + 1) / 2);
	pkvm_assert_pages(&before, NR_PAGES);
	free_vm(vm, bitmap);
}

/* Userspace that provides a page again is too late, and spoils nothing. */
PKVM_TEST(provide_late)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	userfault_enable(vm, TEST_SLOT, bitmap);
	assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA);
	provide(vm, bitmap, 0);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 1);
	TEST_ASSERT(!pkvm_host_can_write(pft_hva(vm)), "The host can write a guest's page");
	/* Not even if it says that the page is missing. */
	userfault_set(bitmap, 0, 1);
	TEST_ASSERT(!pkvm_host_can_write(pft_hva(vm)), "The host can write a guest's page");
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 1);
	free_vm(vm, bitmap);
}

/* The repeated fault donates the page, i.e. the guest doesn't fault again. */
PKVM_TEST(repeated_fault)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	if (!pft_can_count_faults())
		SKIP(return, NO_FAULT_COUNT);
	userfault_enable(vm, TEST_SLOT, bitmap);
	pkvm_boot(vcpu);
	assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA);
	provide(vm, bitmap, 0);
	pft_trace_clear();
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(pft_nr_faults(vcpu), 0);
	free_vm(vm, bitmap);
}

/* A prefault stops at what is missing, and donates what is there. */
PKVM_TEST(pre_fault)
{
	struct kvm_vcpu *vcpu;
	struct pkvm_usage before;
	u64 *bitmap, page;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	userfault_enable(vm, TEST_SLOT, bitmap);
	before = pkvm_get_usage();
	/* Enough for KVM to do some of them at once. */
	for (page = 0; page < 40; page++)
		provide(vm, bitmap, page);
	pre_fault_stops(vcpu, TEST_GPA, mem_size, 0, TEST_GPA + 40 * page_size, EFAULT);
	pkvm_assert_pages(&before, 40);
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, 40, 0), 820);
	free_vm(vm, bitmap);
}

/* Sharing a page with the host has it donated first, and that may have to wait. */
PKVM_TEST(share)
{
	struct pkvm_call call = { .op = PKVM_SHARE, .addr = TEST_GPA, .nr = 1 };
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	userfault_enable(vm, TEST_SLOT, bitmap);
	assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA);
	provide(vm, bitmap, 0);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 0);
	TEST_ASSERT_EQ(*(u64 *)pft_hva(vm), 1);
	free_vm(vm, bitmap);
}

/* Set it too late, and clear it at any time, after which there's no bitmap. */
PKVM_TEST(when)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	/* Back and forth as long as the hypervisor doesn't know the VM. */
	userfault_enable(vm, TEST_SLOT, bitmap);
	userfault_disable(vm, TEST_SLOT);
	userfault_enable(vm, TEST_SLOT, bitmap);
	assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA);

	userfault_disable(vm, TEST_SLOT);
	kvm_munmap(bitmap, page_size);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 0);

	bitmap = userfault_alloc_bitmap(NR_PAGES);
	TEST_ASSERT_EQ(__userfault_set_flags(vm, TEST_SLOT, KVM_MEM_USERFAULT, bitmap), -1);
	TEST_ASSERT_EQ(errno, EPERM);
	free_vm(vm, bitmap);
}

/* A prefault makes the VM known, too. */
PKVM_TEST(after_pre_fault)
{
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	struct kvm_vm *vm = create_vm(&vcpu, &bitmap);

	pre_fault(vcpu, TEST_GPA, page_size, 0);
	TEST_ASSERT_EQ(__userfault_set_flags(vm, TEST_SLOT, KVM_MEM_USERFAULT, bitmap), -1);
	TEST_ASSERT_EQ(errno, EPERM);
	free_vm(vm, bitmap);
}

/* Nothing of a new memslot was ever donated. */
PKVM_TEST(new_memslot)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm_with_vcpus(1, &vcpu, mem_size);
	u64 *bitmap = userfault_alloc_bitmap(NR_PAGES);
	struct kvm_userspace_memory_region2 region = {
		.slot = TEST_SLOT,
		.flags = KVM_MEM_USERFAULT,
		.guest_phys_addr = TEST_GPA,
		.memory_size = mem_size,
		.userfault_bitmap = (uintptr_t)bitmap,
	};
	u64 *mem = kvm_mmap(mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	pkvm_boot(vcpu);
	userfault_set(bitmap, 0, NR_PAGES);
	region.userspace_addr = (uintptr_t)mem;
	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
	assert_exit(vcpu, __pkvm_call(vcpu, &call), TEST_GPA);
	*mem = 5;
	userfault_clear(bitmap, 0, 1);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), 0);
	TEST_ASSERT_EQ(call.result, 5);

	free_vm(vm, bitmap);
	kvm_munmap(mem, mem_size);
}

/* Several vCPUs exit for the same pages; whoever claims one provides it, once. */
#define NR_VCPUS	3

struct reader {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 *bitmap;
	u8 *claimed;
	u64 result;
};

static void *read_all(void *arg)
{
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = NR_PAGES };
	struct reader *r = arg;
	u64 page;
	int ret;

	while ((ret = __pkvm_call(r->vcpu, &call))) {
		TEST_ASSERT(is_userfault_exit(r->vcpu, -1, -ret), "KVM_RUN failed: %d", ret);
		page = (r->vcpu->run->memory_fault.gpa - TEST_GPA) / page_size;
		if (!__atomic_exchange_n(&r->claimed[page], 1, __ATOMIC_ACQ_REL))
			provide(r->vm, r->bitmap, page);
	}
	r->result = call.result;
	return NULL;
}

PKVM_TEST(many_vcpus)
{
	struct reader readers[NR_VCPUS];
	struct kvm_vcpu *vcpus[NR_VCPUS];
	struct kvm_vm *vm = pkvm_create_vm_with_vcpus(NR_VCPUS, vcpus, mem_size);
	u64 *bitmap = userfault_alloc_bitmap(NR_PAGES);
	pthread_t threads[NR_VCPUS];
	u8 claimed[NR_PAGES] = {};
	struct pkvm_usage before;
	int i;

	userfault_set(bitmap, 0, NR_PAGES);
	pft_add_slot(vm, VM_MEM_SRC_ANONYMOUS, TEST_GPA, TEST_SLOT, mem_size, 0);
	userfault_enable(vm, TEST_SLOT, bitmap);
	for (i = 0; i < NR_VCPUS; i++)
		before = pkvm_boot(vcpus[i]);
	for (i = 0; i < NR_VCPUS; i++) {
		readers[i] = (struct reader){ vm, vcpus[i], bitmap, claimed };
		kvm_pthread_create(&threads[i], NULL, read_all, &readers[i]);
	}
	for (i = 0; i < NR_VCPUS; i++) {
		kvm_pthread_join(threads[i], NULL);
		TEST_ASSERT_EQ(readers[i].result, NR_PAGES * (NR_PAGES + 1) / 2);
	}
	pkvm_assert_pages(&before, NR_PAGES);
	free_vm(vm, bitmap);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT));

	page_size = getpagesize();
	mem_size = NR_PAGES * page_size;

	return test_harness_run(argc, argv);
}
