/* SPDX-License-Identifier: MIT */
/*
 * msr.h: a vCPU's model-specific registers.
 */
#ifndef INFILL_VMM_X86_MSR_H
#define INFILL_VMM_X86_MSR_H

#include "vm.h"

struct msr_list {
	struct kvm_msr_entry *entry;
	size_t count;
};

/*
 * All that KVM says need saving, and what a guest can write besides (MTRRs, machine check
 * banks), if it can be read.  0 or -errno.
 */
int msr_read_all(struct vcpu *vcpu, struct msr_list *list);
void msr_list_free(struct msr_list *list);

/*
 * Write COUNT of them.  One that cannot be written is no error while it has that
 * value already: some are constants of the host.
 */
int msr_write_all(struct vcpu *vcpu, const struct kvm_msr_entry *entry, size_t count);

/* arch_kvm_memory() for one vCPU. */
int msr_kvm_memory(struct vcpu *vcpu, int (*fn)(void *arg, uint64_t gpa, uint64_t bytes),
		   void *arg);

#endif
