/* SPDX-License-Identifier: MIT */
/*
 * prefault.h: KVM_PRE_FAULT_MEMORY: map what is in memory before the guest
 * touches it.
 * Internal.  On a vCPU that is not in KVM_RUN, by the thread that runs it.
 */
#ifndef INFILL_PREFAULT_H
#define INFILL_PREFAULT_H

#include <stdint.h>

/*
 * Map BYTES from GPA on; *DONE is how many are.  It is an optimization: what is
 * not mapped the guest maps by a fault.  0, also if less was done because
 * memory is missing, poisoned or being changed, or a signal is pending;
 * -EOPNOTSUPP: never on this VM, do not ask again.
 */
int prefault_range(int vcpu_fd, uint64_t gpa, uint64_t bytes, uint64_t *done);

#endif
