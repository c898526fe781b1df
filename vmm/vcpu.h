/* SPDX-License-Identifier: MIT */
/*
 * vcpu.h: the vCPUs' threads.  vm.c is the only user.
 *
 * A thread is in KVM_RUN, handles an exit, or is parked.  To have it park, main
 * sets vm->pause and sends it a signal, whose handler sets immediate_exit: that
 * ends KVM_RUN, or the next one before it begins.  It parks only behind such a
 * KVM_RUN, because that one completes the I/O instruction of the exit before.
 */
#ifndef INFILL_VMM_VCPU_H
#define INFILL_VMM_VCPU_H

#include "vm.h"

/* Create vCPU INDEX; vcpu_destroy() is due after a failure, too. */
int vcpu_create(struct vm *vm, unsigned index);
void vcpu_destroy(struct vcpu *vcpu);

/* Start all threads.  0 or -errno after vmm_error(). */
int vcpus_start(struct vm *vm);

/* Return when all are parked, or the VM has ended.  Not while they are paused. */
void vcpus_pause(struct vm *vm);
void vcpus_resume(struct vm *vm);

/* After vm_end(): return when no thread is left. */
void vcpus_stop(struct vm *vm);

#endif
