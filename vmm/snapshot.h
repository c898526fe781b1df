/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h: a paused VM as two files.
 */
#ifndef INFILL_VMM_SNAPSHOT_H
#define INFILL_VMM_SNAPSHOT_H

#include "state.h"
#include "vm.h"

/*
 * Write VM, which is paused.  When it returns 0 both files are on the disk; else both are what they
 * were, unless giving them their names failed half-way: then there is no state file.
 */
int snapshot_write(struct vm *vm, const char *memory, const char *state);

/* The second half of that: write VM's memory to MEMORY and STATE to PATH. */
int snapshot_save(struct vm *vm, const struct state *state, const char *memory, const char *path);

/* Set VM, which has memory and vCPUs but never ran, as STATE has it. */
int snapshot_load(struct vm *vm, const struct state *state);

#endif
