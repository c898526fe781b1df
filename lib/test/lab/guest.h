/* SPDX-License-Identifier: MIT */
/*
 * guest.h: the smallest guest that can miss pages, for tests of KVM Userfault
 * in the lab: no paging, no interrupts, a few instructions.  Add another thing
 * for it to do in guest.c, for each architecture.
 */
#ifndef INFILL_TEST_GUEST_H
#define INFILL_TEST_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define GUEST_CODE_GPA 0x10000u
#define GUEST_MEMORY_GPA 0x40000000u
#define GUEST_CODE_SLOT 100u
#define GUEST_PAGE 4096u

struct guest {
	int kvm, vm;
	void *code;
};

struct guest_vcpu {
	int fd;
	struct kvm_run *run;
	int run_size;
};

/*
 * A VM with the guest's code, and no memory.  0, or -errno with a line on stderr.
 */
int guest_new(struct guest *guest);
void guest_free(struct guest *guest);

int guest_vcpu_new(struct guest_vcpu *vcpu, const struct guest *guest, unsigned id);
void guest_vcpu_free(struct guest_vcpu *vcpu);

/*
 * Have the vCPU, from its next KVM_RUN on, go through the PAGES (a power of two)
 * from GUEST_MEMORY_GPA on, each once: page START first, then STEP (odd) pages
 * further, modulo PAGES.  Of each it adds the first 32-bit word to a sum, and
 * increments the word at offset 16 + 4 * SLOT.
 */
int guest_visit(struct guest_vcpu *vcpu, uint32_t pages, uint32_t start, uint32_t step,
		uint32_t slot);

/* Did the exit in vcpu->run say that the guest is through?  *SUM is what it added up. */
bool guest_done(struct guest_vcpu *vcpu, uint32_t *sum);

#endif
