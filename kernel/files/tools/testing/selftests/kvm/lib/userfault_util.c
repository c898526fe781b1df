// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tests of KVM Userfault share: a memslot's bitmap, its flag, and the exit
 * that a vCPU takes on a page whose bit is set.
 */
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "test_util.h"
#include "userfault_util.h"

#define BITS_PER_WORD	BITS_PER_TYPE(u64)

static size_t bitmap_size(u64 nr_pages)
{
	return align_up(align_up(nr_pages, BITS_PER_WORD) / BITS_PER_BYTE, getpagesize());
}

u64 *userfault_alloc_bitmap(u64 nr_pages)
{
	return kvm_mmap(bitmap_size(nr_pages), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

void userfault_free_bitmap(u64 *bitmap, u64 nr_pages)
{
	kvm_munmap(bitmap, bitmap_size(nr_pages));
}

/* The bits that the first of @nr_pages pages from @page on share a word with. */
static u64 word_mask(u64 page, u64 nr_pages)
{
	u64 first = page % BITS_PER_WORD;
	u64 nr = min_t(u64, nr_pages, BITS_PER_WORD - first);

	return GENMASK_ULL(first + nr - 1, first);
}

void userfault_set(u64 *bitmap, u64 page, u64 nr_pages)
{
	u64 end = page + nr_pages;

	while (page < end) {
		__atomic_fetch_or(&bitmap[page / BITS_PER_WORD], word_mask(page, end - page),
				  __ATOMIC_SEQ_CST);
		page = align_down(page, BITS_PER_WORD) + BITS_PER_WORD;
	}
}

void userfault_clear(u64 *bitmap, u64 page, u64 nr_pages)
{
	u64 end = page + nr_pages;

	while (page < end) {
		__atomic_fetch_and(&bitmap[page / BITS_PER_WORD], ~word_mask(page, end - page),
				   __ATOMIC_RELEASE);
		page = align_down(page, BITS_PER_WORD) + BITS_PER_WORD;
	}
}

bool userfault_is_set(u64 *bitmap, u64 page)
{
	u64 word = __atomic_load_n(&bitmap[page / BITS_PER_WORD], __ATOMIC_ACQUIRE);

	return word & word_mask(page, 1);
}

unsigned int userfault_cap(struct kvm_vm *vm)
{
	return vm_check_cap(vm, KVM_CAP_USERFAULT);
}

int __userfault_set_flags(struct kvm_vm *vm, u32 slot, u32 flags, void *bitmap)
{
	struct kvm_userspace_memory_region2 region = memslot2region(vm, slot)->region;

	region.flags = flags;
	region.userfault_bitmap = (uintptr_t)bitmap;
	return __vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

void userfault_set_flags(struct kvm_vm *vm, u32 slot, u32 flags, void *bitmap)
{
	int ret = __userfault_set_flags(vm, slot, flags, bitmap);

	TEST_ASSERT_VM_VCPU_IOCTL(!ret, KVM_SET_USER_MEMORY_REGION2, ret, vm);
	memslot2region(vm, slot)->region.flags = flags;
	memslot2region(vm, slot)->region.userfault_bitmap = (uintptr_t)bitmap;
}

void userfault_enable(struct kvm_vm *vm, u32 slot, u64 *bitmap)
{
	u32 flags = memslot2region(vm, slot)->region.flags;

	if (!(flags & KVM_MEM_USERFAULT))
		userfault_set_flags(vm, slot, flags | KVM_MEM_USERFAULT, bitmap);
}

void userfault_disable(struct kvm_vm *vm, u32 slot)
{
	u32 flags = memslot2region(vm, slot)->region.flags;

	if (flags & KVM_MEM_USERFAULT)
		userfault_set_flags(vm, slot, flags & ~KVM_MEM_USERFAULT, NULL);
}

bool is_userfault_exit(struct kvm_vcpu *vcpu, int ret, int err)
{
	return ret == -1 && err == EFAULT &&
	       vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       vcpu->run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

void vcpu_run_to_userfault(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	int ret = _vcpu_run(vcpu), err = errno;
	struct kvm_run *run = vcpu->run;

	TEST_ASSERT(is_userfault_exit(vcpu, ret, err),
		    "Wanted an exit for gpa 0x%lx, got %d errno %d, exit %s, flags 0x%llx",
		    gpa, ret, err, exit_reason_str(run->exit_reason),
		    run->memory_fault.flags);
	TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_USERFAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa);
	TEST_ASSERT_EQ(run->memory_fault.size, (u64)getpagesize());
}
