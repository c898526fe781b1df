/* SPDX-License-Identifier: MIT */
/*
 * prefault.h: KVM_PRE_FAULT_MEMORY: map what is in memory before the guest
 * touches it.
 * Internal.  On a vCPU that is not in KVM_RUN, by the thread that runs it.
 */
#ifndef INFILL_PREFAULT_H
#define INFILL_PREFAULT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Map BYTES from GPA on; *DONE is how many are.  It is an optimization: what is
 * not mapped the guest maps by a fault.  0, also if less was done because the
 * next page is missing, or poisoned; -EAGAIN: not now, as a signal is pending, a
 * memslot is being changed, or KVM has no memory: the rest may be asked for
 * later; -EOPNOTSUPP: never on this VM, do not ask again.
 *
 * PROTECTED: of a protected VM, to which it donates the memory: the guest's own
 * touch would meet the same error, so it is told.  -ENOMEM: RLIMIT_MEMLOCK;
 * -EHWPOISON: the host's memory is broken; -EPERM: it is not the host's alone;
 * -EOPNOTSUPP: it is of a kind that cannot be donated.
 */
int prefault_range(int vcpu_fd, uint64_t gpa, uint64_t bytes, bool protected, uint64_t *done);

#endif
