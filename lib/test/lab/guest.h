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
 * A VM with the guest's code, and no memory; PROTECTED: one of pKVM's.  0, or
 * -errno with a line on stderr.
 */
int guest_new(struct guest *guest, bool protected);
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

/* What a guest checks that nobody else can read. */
struct guest_check {
	uint32_t pages;              /* a power of two */
	uint32_t start, step, slot;  /* as for guest_visit() */
	uint32_t factor;             /* 1, or 5 for pages in no order: index * factor + step is next */
	uint32_t visits;             /* how often it was there before: what was added to its slot */
	/* The words of page N count from N * MULTIPLIER + 1 on, but for pages of zeros. */
	uint32_t multiplier, zero_from, zero_to;
};

/*
 * As guest_visit(), but of each page every word is compared with what it has to
 * be, but for the first four slots, of which its own is; the sum is how many are
 * wrong.  -ENOSYS: this architecture's guest cannot.
 */
int guest_verify(struct guest_vcpu *vcpu, const struct guest_check *check);

/* Did the exit in vcpu->run say that the guest is through?  *SUM is what it added up. */
bool guest_done(struct guest_vcpu *vcpu, uint32_t *sum);

#endif
