/* SPDX-License-Identifier: MIT */
/*
 * pvh.h: Linux as an ELF file (vmlinux), entered by PVH.
 */
#ifndef INFILL_VMM_X86_PVH_H
#define INFILL_VMM_X86_PVH_H

#include "arch.h"
#include "load.h"

/* Where it is in guest memory. */
struct pvh_kernel {
	uint32_t entry; /* in 32-bit protected mode */
	uint64_t end;
};

/* Load the ELF file KERNEL.  0, or -errno after vmm_error(): -ENOEXEC: it cannot be entered so. */
int pvh_load(struct vm *vm, const struct source *kernel, struct pvh_kernel *loaded);

/* The same, and all else that it needs: the first vCPU is set to its entry. */
int pvh_boot(struct vm *vm, const struct source *kernel, const struct boot *boot);

#endif
