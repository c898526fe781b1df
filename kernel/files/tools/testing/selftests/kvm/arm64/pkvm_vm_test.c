// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs under pKVM: whose a page of memory is, what the host can do with
 * it, and what it's accounted as.
 */
#include <linux/sizes.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "pkvm_test.h"
#include "pkvm_util.h"
#include "pre_fault_util.h"
#include "test_util.h"

#define NR_PAGES	16

static u64 page_size;

/* The guest gets what the memory had, and the host loses it. */
PKVM_TEST(donate)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, NR_PAGES * page_size);
	void *mem = pft_hva(vm);
	struct pkvm_usage before;
	int i, fds[2];

	pft_populate(mem, NR_PAGES * page_size);
	before = pkvm_boot(vcpu);

	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, NR_PAGES - 1, 0),
		       pkvm_sum_of(0, NR_PAGES - 1));
	pkvm_assert_pages(&before, NR_PAGES - 1);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT_EQ(pkvm_host_can_read(mem + i * page_size), i == NR_PAGES - 1);

	/* A store fails as a load does, and so do system calls: nothing is spoilt. */
	TEST_ASSERT(!pkvm_host_can_write(mem), "The host can write a guest's page");
	TEST_ASSERT_EQ(pipe(fds), 0);
	TEST_ASSERT_EQ(write(fds[1], mem, 8), -1);
	TEST_ASSERT_EQ(errno, EFAULT);
	TEST_ASSERT_EQ(write(fds[1], "spoilt!", 8), 8);
	TEST_ASSERT_EQ(read(fds[0], mem, 8), -1);
	TEST_ASSERT_EQ(errno, EFAULT);
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, NR_PAGES - 1, 0),
		       pkvm_sum_of(0, NR_PAGES - 1));
	kvm_close(fds[0]);
	kvm_close(fds[1]);
	pkvm_call(vcpu, PKVM_WRITE, TEST_GVA, NR_PAGES, 7);
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, NR_PAGES, 0), 7 * NR_PAGES);
	pkvm_assert_pages(&before, NR_PAGES);

	/* Unmapped by the host, it's there all the same. */
	TEST_ASSERT(!madvise(mem, NR_PAGES * page_size, MADV_DONTNEED),
		    "MADV_DONTNEED failed");
	TEST_ASSERT(pkvm_host_can_read(mem), "The page isn't a new one");
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, NR_PAGES, 0), 7 * NR_PAGES);
	pkvm_assert_pages(&before, NR_PAGES);

	kvm_vm_free(vm);
}

/* The guest lends a page to the host, which can write it, and takes it back. */
PKVM_TEST(share)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, NR_PAGES * page_size);
	u64 *mem = pft_hva(vm);

	/* The second page is not the guest's yet, and is made so. */
	pkvm_call(vcpu, PKVM_WRITE, TEST_GVA, 1, 5);
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_SHARE, TEST_GPA, 2, 0), 0);
	TEST_ASSERT_EQ(READ_ONCE(*mem), 5);
	WRITE_ONCE(*mem, 6);
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, 1, 0), 6);
	TEST_ASSERT(pkvm_host_can_read((void *)mem + page_size), "A shared page is gone");

	TEST_ASSERT(pkvm_call(vcpu, PKVM_SHARE, TEST_GPA, 1, 0), "Shared a page twice");
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_UNSHARE, TEST_GPA, 1, 0), 0);
	TEST_ASSERT(!pkvm_host_can_read(mem), "A page is no longer shared");
	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA, 1, 0), 6);

	kvm_vm_free(vm);
}

/* When the VM is gone the host has all pages back, and what was the guest's is 0. */
PKVM_TEST(reclaim)
{
	const u64 size = NR_PAGES * page_size;
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm_with_vcpus(1, &vcpu, size);
	int i;

	pft_populate(mem, size);
	pkvm_add_memory(vm, mem, size);
	pkvm_call(vcpu, PKVM_WRITE, TEST_GVA, NR_PAGES - 1, 9);
	pkvm_call(vcpu, PKVM_SHARE, TEST_GPA, 1, 0);
	kvm_vm_free(vm);

	TEST_ASSERT_EQ(*(u64 *)mem, 9);
	for (i = 1; i < NR_PAGES - 1; i++)
		TEST_ASSERT_EQ(*(u64 *)(mem + i * page_size), 0);
	TEST_ASSERT_EQ(*(u64 *)(mem + i * page_size), i * page_size);
	kvm_munmap(mem, size);
}

/*
 * An access of the kernel that isn't prepared to fail takes the page away from
 * the guest, empty and for good.  What is written is the host's only.
 */
static void test_force_reclaim(bool write)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, NR_PAGES * page_size);
	struct pkvm_call call = { .op = PKVM_READ, .addr = TEST_GVA, .nr = 1 };
	u64 *mem = pft_hva(vm);
	struct pkvm_usage before;

	pkvm_call(vcpu, PKVM_WRITE, TEST_GVA, NR_PAGES, 11);
	before = pkvm_get_usage();
	if (write)
		pkvm_kernel_write(mem + 1, 12);
	TEST_ASSERT_EQ(pkvm_kernel_read(mem), 0);
	TEST_ASSERT(pkvm_host_can_read(mem), "A reclaimed page isn't the host's");
	TEST_ASSERT_EQ(READ_ONCE(mem[1]), write ? 12 : 0);

	TEST_ASSERT_EQ(pkvm_call(vcpu, PKVM_READ, TEST_GVA + page_size, NR_PAGES - 1, 0),
		       11 * (NR_PAGES - 1));
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -EFAULT);
	TEST_ASSERT_EQ(__pkvm_call(vcpu, &call), -EFAULT);
	/* It's pinned as before. */
	pkvm_assert_pages(&before, 0);

	kvm_vm_free(vm);
}

PKVM_TEST(force_reclaim)
{
	test_force_reclaim(false);
}

PKVM_TEST(force_reclaim_by_write)
{
	test_force_reclaim(true);
}

/* Memslots that a protected VM can't have, or can't have any more. */
PKVM_TEST(memslots)
{
	const u64 size = NR_PAGES * page_size;
	const u64 gmem_flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = pkvm_create_vm(&vcpu, VM_MEM_SRC_ANONYMOUS, size);
	void *mem = pft_hva(vm);
	int fd;

	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, OTHER_SLOT, KVM_MEM_READONLY,
						   OTHER_GPA, size, mem), -1);
	TEST_ASSERT_EQ(errno, EPERM);
	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, TEST_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
						   TEST_GPA, size, mem), -1);
	TEST_ASSERT_EQ(errno, EPERM);

	fd = __vm_create_guest_memfd(vm, size, gmem_flags);
	if (fd >= 0) {
		TEST_ASSERT_EQ(__vm_set_user_memory_region2(vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD,
							    OTHER_GPA, size, mem, fd, 0), -1);
		TEST_ASSERT_EQ(errno, EINVAL);
		kvm_close(fd);
	}

	/* Until the VM runs a memslot can be deleted, and created again. */
	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, 0, mem), 0);
	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, size, mem), 0);
	pkvm_call(vcpu, PKVM_READ, TEST_GVA, 1, 0);
	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, TEST_SLOT, 0, TEST_GPA, 0, mem), -1);
	TEST_ASSERT_EQ(errno, EPERM);
	TEST_ASSERT_EQ(__vm_set_user_memory_region(vm, TEST_SLOT, 0, OTHER_GPA, size, mem), -1);
	TEST_ASSERT_EQ(errno, EPERM);

	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();

	return test_harness_run(argc, argv);
}
