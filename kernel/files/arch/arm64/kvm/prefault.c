// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_PRE_FAULT_MEMORY: populate stage-2 before the guest touches memory.
 *
 * The GPA is an IPA in the VM's memslot address space, and the target is always
 * the VM's canonical stage-2, whatever the vCPU ran last.  Nothing of the vCPU
 * is used but its memory caches: neither the syndrome of its last exit nor the
 * stage-2 that it has loaded are looked at or changed.  Populating a stage-2
 * that isn't loaded is nothing special, MMU notifiers modify it in the same
 * way: TLB invalidation switches to the VMID of the MMU that is modified, and
 * back.
 */

#include <linux/kvm_host.h>
#include <linux/sched/signal.h>

#include <asm/kvm_arm.h>
#include <asm/kvm_emulate.h>
#include <asm/kvm_mmu.h>
#include <asm/kvm_pgtable.h>
#include <asm/kvm_pkvm.h>

#include "s2_fault.h"

/* Returns the size of the canonical mapping of @gpa, or 0 if there is none. */
static unsigned long mapped_size(struct kvm *kvm, gpa_t gpa)
{
	struct kvm_pgtable *pgt;
	kvm_pte_t pte;
	s8 level;

	guard(read_lock)(&kvm->mmu_lock);
	pgt = kvm->arch.mmu.pgt;

	/* Under pKVM stage-2 belongs to the hypervisor. */
	if (is_protected_kvm_enabled())
		return pkvm_pgtable_stage2_mapped_size(pgt, gpa);

	/* vCPUs change the table while they hold mmu_lock for read, too. */
	if (kvm_pgtable_get_leaf(pgt, gpa, &pte, &level, KVM_PGTABLE_WALK_SHARED) ||
	    !kvm_pte_valid(pte))
		return 0;

	return kvm_granule_size(level);
}

/*
 * Try once to have @gpa mapped.  Returns 0 with *@size set to the size of the
 * mapping, or untouched if the attempt has to be repeated, or -errno.
 */
static int prefault(struct kvm_vcpu *vcpu, gpa_t gpa, unsigned long *size)
{
	struct kvm *kvm = vcpu->kvm;
	struct kvm_memory_slot *slot = gfn_to_memslot(kvm, gpa_to_gfn(gpa));
	unsigned long mapped;

	if (!slot)
		return -ENOENT;

	/*
	 * The slot is about to be deleted or moved, and that waits for SRCU,
	 * which is held: don't wait for the slot in turn.
	 */
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;

	/*
	 * Leave what is mapped as it is.  A fault at page granularity on a
	 * block would split it, and unmap the rest of the block.
	 */
	mapped = mapped_size(kvm, gpa);
	if (mapped) {
		*size = mapped;
		return 0;
	}

	const struct kvm_s2_fault_desc s2fd = {
		.vcpu		= vcpu,
		.mmu		= &kvm->arch.mmu,
		.fault_ipa	= gpa,
		.memslot	= slot,
		.hva		= gfn_to_hva_memslot_prot(slot, gpa_to_gfn(gpa), NULL),
		.prefaulted	= size,
	};

	return kvm_s2_handle_fault(&s2fd);
}

int kvm_arch_vcpu_pre_fault_prepare(struct kvm_vcpu *vcpu)
{
	if (!kvm_vcpu_initialized(vcpu))
		return -ENOEXEC;

	if (!kvm_arm_vcpu_is_finalized(vcpu))
		return -EPERM;

	if (kvm_vm_is_protected(vcpu->kvm))
		return -EOPNOTSUPP;

	/*
	 * Sharing memory with a guest takes the hypervisor's view of the VM and
	 * the vCPU, which are created the first time that the vCPU runs.
	 */
	if (is_protected_kvm_enabled() && !vcpu_get_flag(vcpu, VCPU_PKVM_FINALIZED))
		return kvm_arch_vcpu_run_pid_change(vcpu);

	return 0;
}

long kvm_arch_vcpu_pre_fault_memory(struct kvm_vcpu *vcpu,
				    struct kvm_pre_fault_memory *range)
{
	unsigned long size = 0;
	int ret;

	/*
	 * An attempt has to be repeated if it raced with an invalidation or
	 * with a vCPU that faulted on the same memory.
	 */
	while (!size) {
		if (signal_pending(current))
			return -EINTR;

		ret = prefault(vcpu, range->gpa, &size);
		/* The generic code reserves -EIO for KVM's own bugs. */
		if (ret)
			return ret == -EIO ? -EFAULT : ret;

		cond_resched();
	}

	/* The mapping may begin below the GPA, and end after the range. */
	return min(range->size, ALIGN_DOWN(range->gpa, size) + size - range->gpa);
}
