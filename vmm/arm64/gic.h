/* SPDX-License-Identifier: MIT */
/*
 * gic.h: the interrupt controller, a GICv3 in KVM.
 */
#ifndef INFILL_VMM_ARM64_GIC_H
#define INFILL_VMM_ARM64_GIC_H

#include "../state.h"
#include "../vm.h"

/* Save all of it, or make it as it was saved; vCPUs are paused.  See arch.h. */
int gic_save(struct vm *vm, struct state *state);
int gic_load(struct vm *vm, const struct state *state);

#endif
