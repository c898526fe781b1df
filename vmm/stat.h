/* SPDX-License-Identifier: MIT */
/*
 * stat.h: what a VM has done since its vCPUs started, as text.
 */
#ifndef INFILL_VMM_STAT_H
#define INFILL_VMM_STAT_H

#include "vm.h"

/* CLOCK_MONOTONIC in ns. */
uint64_t stat_now(void);

/* Before the vCPUs start: a vCPU in KVM_RUN has the lock that asking for its statistics takes. */
void stat_open(struct vm *vm);

/*
 * One line of JSON with its end, as infill-vmm(1) describes it; the caller frees
 * it.  NULL without memory.  While vCPUs run: numbers are of nearly the same moment.
 */
char *stat_text(struct vm *vm);

#endif
