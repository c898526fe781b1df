/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Protected VMs under pKVM.  The host can't read what their memory has once the
 * guest has touched it, so there are no ucalls: the guest is told what to do,
 * and tells the result, through registers of a page of MMIO.
 *
 * Memory that a test is about is TEST_SLOT at TEST_GPA, see pre_fault_util.h,
 * where the guest has it at TEST_GVA.
 */
#ifndef SELFTEST_KVM_PKVM_UTIL_H
#define SELFTEST_KVM_PKVM_UTIL_H

#include "kvm_util.h"
#include "pre_fault_util.h"

/* What a guest can do. */
enum pkvm_op {
	/* Return the sum of the first words of nr host pages at gva. */
	PKVM_READ,
	/* Write the value to the first words of nr host pages at gva. */
	PKVM_WRITE,
	/* Share nr host pages at the gpa with the host, or cease to. */
	PKVM_SHARE,
	PKVM_UNSHARE,
};

struct pkvm_call {
	enum pkvm_op op;
	/* A gva, or a gpa. */
	u64 addr;
	u64 nr;
	u64 value;
	/* What the guest returned. */
	u64 result;
};

bool pkvm_has_protected_vms(void);

/*
 * A protected VM without TEST_SLOT, for whose guests @size bytes at TEST_GVA are
 * at TEST_GPA.
 */
struct kvm_vm *pkvm_create_vm_with_vcpus(int nr_vcpus, struct kvm_vcpu **vcpus,
					 u64 size);

/* Likewise, with one vCPU, and TEST_SLOT there. */
struct kvm_vm *pkvm_create_vm(struct kvm_vcpu **vcpu,
			      enum vm_mem_backing_src_type src, u64 size);

/* Add @mem as TEST_SLOT.  It's not unmapped with the VM. */
void pkvm_add_memory(struct kvm_vm *vm, void *mem, u64 size);

/*
 * Have the guest do something.  Returns 0 when it has, or -errno of KVM_RUN.  To
 * call again goes on with the call, unless it had finished.
 */
int __pkvm_call(struct kvm_vcpu *vcpu, struct pkvm_call *call);

/* Likewise, with all of it working out.  Returns the guest's result. */
u64 pkvm_call(struct kvm_vcpu *vcpu, enum pkvm_op op, u64 addr, u64 nr, u64 value);

/* What a protected VM takes of the host, in pages. */
struct pkvm_usage {
	/* Of this process, accounted against RLIMIT_MEMLOCK. */
	long locked;
	/* Of the system: pinned pages, and pages that are stage-2 tables. */
	long pinned;
	long tables;
};

struct pkvm_usage pkvm_get_usage(void);

/* Fail unless the usage is @pages pinned and locked pages above @base. */
void pkvm_assert_pages(const struct pkvm_usage *base, long pages);

/* Fail unless the usage is back at @base, tables included. */
void pkvm_assert_released(const struct pkvm_usage *base);

/*
 * Let the guest have all that it needs to read and write TEST_SLOT, which must be
 * less than 2M, so that what is donated from then on is what it reads and writes
 * there.  Returns the usage after that.
 */
struct pkvm_usage pkvm_boot(struct kvm_vcpu *vcpu);

/* What PKVM_READ returns for @nr pages that pft_populate() wrote, from @first on. */
u64 pkvm_sum_of(u64 first, u64 nr);

/*
 * Have the kernel read or write the memory through its own mapping of it, as for
 * ptrace(), which doesn't fail, but takes a guest's page away.
 */
u64 pkvm_kernel_read(void *mem);
void pkvm_kernel_write(void *mem, u64 word);

/*
 * Can a program of the host read the memory, or does it get a SIGSEGV?  And can
 * it write there?  If so, the first word is spoilt.
 */
bool pkvm_host_can_read(void *mem);
bool pkvm_host_can_write(void *mem);

#endif /* SELFTEST_KVM_PKVM_UTIL_H */
