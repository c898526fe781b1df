/* SPDX-License-Identifier: MIT */
/*
 * walker.h: a VM of arm64, protected or not, whose one vCPU walks through its memory, for
 * figures.  The guest is ten instructions without tables of its own, so that nothing but
 * the memory in question is touched, and it talks by a store to where there is no memory:
 * the host cannot read a protected guest's.  What fails ends the program with a line that
 * says what.  To be compiled beside a case's program: see the key `program` in
 * docs/lab.md.
 */
#ifndef LAB_PROGRAMS_WALKER_H
#define LAB_PROGRAMS_WALKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../lib/src/kvm_api.h"

#define WALKER_GPA 0x40000000ul /* where its memory is */
#define WALKER_PAGE 4096ul

struct walker {
	int kvm, vm, vcpu, stats;
	struct kvm_run *run;
	size_t run_bytes;
	void *code;
};

/* Can KVM make VMs of that kind here? */
bool walker_possible(bool is_protected);

/*
 * Make the VM, with @bytes of @memory, which remains the caller's and must outlive it.
 * With a @bitmap KVM Userfault is on, with a bit for each page; NULL: it is off.
 */
void walker_new(struct walker *walker, bool is_protected, void *memory, size_t bytes,
		const uint64_t *bitmap);
void walker_free(struct walker *walker);

/*
 * Have the guest stand at the start of its walk: its code is there, and each walk from
 * then on visits @pages pages in their order, from the first one on.  Of each it reads
 * the second word (of 8 bytes), after it wrote the first one if @write.
 */
void walker_start(struct walker *walker, uint64_t pages, bool write);

/*
 * Run a walk, or go on with it.  True with *@sum of the words that it read when it has
 * ended; false with *@gpa at a page that is missing.
 */
bool walker_run(struct walker *walker, uint64_t *sum, uint64_t *gpa);

/* KVM_PRE_FAULT_MEMORY of all of [@gpa, @gpa + @bytes), for writing. */
void walker_prefault(struct walker *walker, uint64_t gpa, uint64_t bytes);

/* How many stage-2 faults on memory the vCPU has taken. */
uint64_t walker_faults(struct walker *walker);

/* End the program: print what failed, and errno's text. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

#endif
