/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What resolving a stage-2 fault takes, whoever caused it: a vCPU that ran
 * into it, or userspace that wants memory mapped ahead of time.  Private to
 * KVM/arm64.
 */

#ifndef __ARM64_KVM_S2_FAULT_H__
#define __ARM64_KVM_S2_FAULT_H__

#include <linux/kvm_host.h>

struct kvm_s2_trans;

/*
 * A stage-2 fault.  What the syndrome of a guest's fault says is decoded once,
 * into the fields below; a prefault has no syndrome.
 */
struct kvm_s2_fault_desc {
	struct kvm_vcpu		*vcpu;
	/* The MMU to populate, not necessarily the one that is loaded. */
	struct kvm_s2_mmu	*mmu;
	phys_addr_t		fault_ipa;
	struct kvm_s2_trans	*nested;
	struct kvm_memory_slot	*memslot;
	unsigned long		hva;
	/* Size of the mapping that denied the access, 0 if there was none. */
	unsigned long		perm_granule;
	bool			write;
	bool			exec;
	bool			excl_atomic;
	/*
	 * NULL for a guest's fault.  For a prefault, receives the size of the
	 * mapping once there is one; it remains untouched, with a return value
	 * of 0, if the fault has to be retried.
	 */
	unsigned long		*prefaulted;
};

/*
 * Resolve a fault, with SRCU held.  Returns 0 if the access is worth a retry,
 * 1 if the guest has been dealt with in another way, or -errno.
 *
 * A prefault changes nothing that the guest or userspace can see but the
 * mapping: a poisoned page is -EHWPOISON without a SIGBUS, and kvm_run isn't
 * written, as it may hold an exit that userspace has yet to complete.
 */
int kvm_s2_handle_fault(const struct kvm_s2_fault_desc *s2fd);

#endif /* __ARM64_KVM_S2_FAULT_H__ */
