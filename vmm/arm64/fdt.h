/* SPDX-License-Identifier: MIT */
/*
 * fdt.h: the device tree, by which Linux learns what its machine has.
 */
#ifndef INFILL_VMM_ARM64_FDT_H
#define INFILL_VMM_ARM64_FDT_H

#include "../vm.h"

/* What the guest is told beside its hardware; an initrd of no bytes is none. */
struct fdt_boot {
	const char *command_line;
	uint64_t initrd, initrd_bytes;
};

/* Write a tree for VM to AT, which has BYTES.  0, or -errno after an error line. */
int fdt_write(struct vm *vm, const struct fdt_boot *boot, void *at, size_t bytes);

#endif
