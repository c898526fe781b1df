/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests of KVM_PRE_FAULT_MEMORY share.  A test maps memory at TEST_GPA,
 * prefaults it, and has pft_touch() count the stage-2 faults that the guest
 * takes on it.  "pft" is short for prefault test.
 */
#ifndef SELFTEST_KVM_PRE_FAULT_UTIL_H
#define SELFTEST_KVM_PRE_FAULT_UTIL_H

#include <linux/sizes.h>

#include "kvm_util.h"
#include "test_util.h"

#define TEST_SLOT	10
#define OTHER_SLOT	11

/* Above everything that the library maps, and aligned for every block size. */
#define TEST_GPA	((gpa_t)SZ_4G)
#define OTHER_GPA	(2 * TEST_GPA)
#define TEST_GVA	0xc0000000ul

/*
 * A test that takes this long hangs.  The harness would say less about it.  An
 * emulated machine with a debug kernel takes minutes for some.
 */
#define PFT_HANG_SECONDS	600
#define PFT_TEST_SECONDS	(PFT_HANG_SECONDS + 20)

/* Reasons to skip a test. */
#define NO_FAULT_COUNT	"no tracefs to count faults with"
#define NO_TRACE	"no tracefs"
#define NO_WRITE	"no KVM_PRE_FAULT_FLAG_WRITE"

/*
 * Begin and end a test.  Both return true if the kernel has ever warned; it
 * must not have done so in between.
 */
bool pft_begin(void);
bool pft_end(void);

/* KVM_PRE_FAULT_FLAG_WRITE if it is supported, else 0. */
u64 pft_write_flag(void);

/*
 * The bare ioctl.  It must leave kvm_run alone, and @range if it fails, and
 * make progress if it doesn't.
 */
int __pre_fault(struct kvm_vcpu *vcpu, struct kvm_pre_fault_memory *range);

/* Prefault all of a range, which has to work at once. */
void pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size, u64 flags);

/* Prefault a range of which the first page fails with @expected. */
void pre_fault_fails(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size, u64 flags,
		     int expected);

/* Prefault a range that can be prefaulted up to @stop, and fails there. */
void pre_fault_stops(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size, u64 flags,
		     gpa_t stop, int expected);

/* A VM for whose guest @size bytes at TEST_GVA are at TEST_GPA. */
struct kvm_vm *pft_create_vm_without_slot(struct vm_shape shape,
					  struct kvm_vcpu **vcpu, u64 size);
void pft_add_slot(struct kvm_vm *vm, enum vm_mem_backing_src_type src,
		  gpa_t gpa, u32 slot, u64 size, u32 flags);
/* Likewise, with TEST_SLOT there. */
struct kvm_vm *pft_create_vm(struct kvm_vcpu **vcpu,
			     enum vm_mem_backing_src_type src, u64 size);

/*
 * Map all that the guest needs to run, so that x86's stats count only faults on
 * the memory that the test is about.  To be repeated after a memslot is deleted,
 * which unmaps everything.
 */
void pft_map_slot0(struct kvm_vcpu *vcpu);

/* Code for a vCPU that pft_access() and pft_touch() are used with. */
void pft_guest_code(void);

/* Where TEST_SLOT is in the host. */
void *pft_hva(struct kvm_vm *vm);

/* Write each page's offset to it, also so that a read finds no zero page. */
void pft_populate(void *mem, u64 size);

/*
 * Have the guest read or write the first word of every host page of a range at
 * TEST_GVA + @offset: its own address is what it writes.  Returns the sum of
 * what it read.
 */
u64 pft_access(struct kvm_vcpu *vcpu, u64 offset, u64 size, bool write);

/* Likewise, and returns how many stage-2 faults on test memory that took. */
u64 pft_touch(struct kvm_vcpu *vcpu, u64 offset, u64 size, bool write);
bool pft_can_count_faults(void);

/* A step of KVM_PRE_FAULT_MEMORY, as the tracepoint tells of it. */
struct pft_step {
	u64 gpa;
	long ret;
};

bool pft_can_trace(void);
void pft_trace_clear(void);

/* Fills @steps with the steps since the trace was cleared, returns how many. */
int pft_trace_steps(struct pft_step *steps, int max);

#endif /* SELFTEST_KVM_PRE_FAULT_UTIL_H */
