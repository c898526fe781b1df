/* SPDX-License-Identifier: MIT */
/*
 * arch.h: what an architecture provides.  x86/ and arm64/ each define all of
 * it; nothing else in the VMM knows which one it is built for.
 *
 * Functions return 0, or -errno after a line was left with vmm_error() that
 * names what failed and why (error.h).
 */
#ifndef INFILL_VMM_ARCH_H
#define INFILL_VMM_ARCH_H

#include "error.h"
#include "serial.h"
#include "state.h"
#include "vm.h"

/*
 * Split vm->memory_bytes into vm->region[]: gpa, bytes, offset.  Called before
 * anything is allocated.
 */
int arch_layout(struct vm *vm);

/* The type for KVM_CREATE_VM, e.g. arm64's IPA size, or a protected VM; >= 0 or -errno. */
long arch_vm_type(int kvm, const struct vm *vm);

/* After KVM_CREATE_VM, before memory and vCPUs: interrupt controller, clocks. */
int arch_vm_init(struct vm *vm);

/* After KVM_CREATE_VCPU and the mmap() of kvm_run: features, CPUID, PSCI. */
int arch_vcpu_init(struct vcpu *vcpu);

/* After all vCPUs: what needs to know them (the GIC's regions, ...). */
int arch_vm_ready(struct vm *vm);

/* Free vm->arch and each vcpu->arch; the fds are closed by vm.c.  After any failure, too. */
void arch_vm_free(struct vm *vm);

/* What a VM is booted with. */
struct boot {
	const char *kernel, *initrd, *command_line; /* initrd: NULL for none */
};

/* Load kernel, initrd and tables into memory, and set the first vCPU to the entry. */
int arch_boot(struct vm *vm, const struct boot *boot);

/*
 * An exit that vcpu.c does not know: port I/O, MMIO, HLT, system events.  Calls
 * serial_read() and serial_write() for the console's registers.  Reads of
 * what is not there are all ones, writes go nowhere.
 */
enum next arch_exit(struct vcpu *vcpu);

/* Set the level of the console's interrupt line.  Any thread. */
void arch_serial_irq(struct vm *vm, bool level);

/*
 * Save and restore all that a running guest needs but memory, as records of
 * state.h.  vCPUs are created and initialised as for a boot, and paused.
 * arch_load() leaves everything as it was when it was saved: also pending
 * interrupts, timers and their clocks, which go on from there (a protected VM has
 * the host's clock).  The console is
 * no part of it (serial_save(), and serial_load() after arch_load()).
 */
int arch_save(struct vm *vm, struct state *state);
int arch_load(struct vm *vm, const struct state *state);

/*
 * Memory that KVM itself reads or writes for a vCPU without the guest's
 * touching it first (shared clocks, steal time, ...): call FN for each range
 * after arch_load().  It must be there before the vCPU runs.
 */
int arch_kvm_memory(struct vm *vm, int (*fn)(void *arg, uint64_t gpa, uint64_t bytes), void *arg);

#endif
