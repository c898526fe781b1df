/* SPDX-License-Identifier: MIT */
/*
 * cpu.h: one arm64 vCPU: its registers by KVM's numbers.
 */
#ifndef INFILL_VMM_ARM64_CPU_H
#define INFILL_VMM_ARM64_CPU_H

#include "../state.h"
#include "../vm.h"

/* The largest register that KVM has: a vector of 2048 bits. */
#define CPU_REGISTER_BYTES_MAX 256

/*
 * Read or write register ID; VALUE has KVM_REG_SIZE(ID) bytes.  0 or -errno,
 * without an error line: the caller knows whether a failure matters.
 */
int cpu_get(struct vcpu *vcpu, uint64_t id, void *value);
int cpu_set(struct vcpu *vcpu, uint64_t id, const void *value);

/*
 * The affinity fields of the vCPU's MPIDR, by which device tree, GIC and PSCI
 * name it.  0, or -errno after an error line.
 */
int cpu_affinity(struct vcpu *vcpu, uint64_t *affinity);

/* True if STATE has register ID of that vCPU (state.c). */
bool cpu_was_saved_with(const struct state *state, unsigned vcpu, uint64_t id);

/* Where a boot begins: PC, and the device tree's address in x0. */
int cpu_set_entry(struct vcpu *vcpu, uint64_t pc, uint64_t fdt);

#endif
