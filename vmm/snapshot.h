/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h: a paused VM as two files.
 */
#ifndef INFILL_VMM_SNAPSHOT_H
#define INFILL_VMM_SNAPSHOT_H

#include "state.h"
#include "vm.h"

/* Write VM, which is paused.  The state file comes last: with it, all is there. */
int snapshot_write(struct vm *vm, const char *memory, const char *state);

/* Set VM, which has memory and vCPUs but never ran, as STATE has it. */
int snapshot_load(struct vm *vm, const struct state *state);

#endif
