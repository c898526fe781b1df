/* SPDX-License-Identifier: MIT */
/*
 * cpu.c: a PC's interrupt controllers and timer, all inside KVM, its vCPUs, and
 * the ports that a guest reaches.  A new device gets its ports in port_read() and
 * port_write().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "x86.h"

int arch_layout(struct vm *vm)
{
	uint64_t low = vm->memory_bytes < X86_GAP_BEGIN ? vm->memory_bytes : X86_GAP_BEGIN;

	vm->region[0] = (struct region){ .gpa = 0, .bytes = low, .offset = 0, .fd = -1 };
	vm->regions = 1;
	if (vm->memory_bytes > low) {
		vm->region[1] = (struct region){
			.gpa = X86_GAP_END, .bytes = vm->memory_bytes - low, .offset = low, .fd = -1,
		};
		vm->regions = 2;
	}
	return 0;
}

long arch_vm_type(int kvm, const struct vm *vm)
{
	(void)kvm;
	if (vm->is_protected)
		return vmm_error(-EOPNOTSUPP, "--protected: pKVM is arm64's: %m");
	return 0; /* the default, which all hosts have */
}

int arch_vm_init(struct vm *vm)
{
	/* The guest may gate the timer and look at it by port 0x61, without a sound. */
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity_map = X86_IDENTITY_MAP;

	if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) ||
	    ioctl(vm->fd, KVM_SET_TSS_ADDR, X86_TSS))
		return vmm_error(-errno, "pages for real mode: %m");
	if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0))
		return vmm_error(-errno, "interrupt controllers: %m");
	if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit))
		return vmm_error(-errno, "timer: %m");
	return 0;
}

int arch_vcpu_init(struct vcpu *vcpu)
{
	return x86_cpuid(vcpu);
}

int arch_vm_ready(struct vm *vm)
{
	(void)vm;
	return 0;
}

void arch_vm_free(struct vm *vm)
{
	(void)vm;
}

void arch_serial_irq(struct vm *vm, bool level)
{
	struct kvm_irq_level line = { .irq = X86_SERIAL_IRQ, .level = level };

	/* Only fails where there are no interrupt controllers. */
	ioctl(vm->fd, KVM_IRQ_LINE, &line);
}

/* ---- exits ------------------------------------------------------------------------ */

static uint32_t port_read(struct vm *vm, unsigned port)
{
	if (port >= X86_SERIAL && port < X86_SERIAL + SERIAL_REGISTERS)
		return serial_read(vm->serial, port - X86_SERIAL);
	if (port >= X86_PM && port < X86_PM + X86_PM_PORTS)
		return x86_pm_read(port - X86_PM);
	return UINT32_MAX;
}

static enum next port_write(struct vm *vm, unsigned port, uint32_t value)
{
	const uint32_t pulse_reset = 0xfe;

	if (port >= X86_SERIAL && port < X86_SERIAL + SERIAL_REGISTERS)
		serial_write(vm->serial, port - X86_SERIAL, (uint8_t)value);
	else if (port >= X86_PM && port < X86_PM + X86_PM_PORTS)
		return x86_pm_write(port - X86_PM, value);
	else if (port == X86_KEYBOARD && value == pulse_reset)
		return NEXT_RESET; /* the last way that a kernel tries, and reboot=k */
	return NEXT_RUN;
}

/* One instruction may move several values: REP INS and OUTS. */
static enum next port_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	enum next next = NEXT_RUN;

	for (uint32_t i = 0; i < run->io.count && next == NEXT_RUN; i++) {
		uint32_t value = 0;

		if (run->io.direction == KVM_EXIT_IO_IN) {
			value = port_read(vcpu->vm, run->io.port);
			memcpy(data, &value, run->io.size);
		} else {
			memcpy(&value, data, run->io.size);
			next = port_write(vcpu->vm, run->io.port, value);
		}
		data += run->io.size;
	}
	return next;
}

enum next arch_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return port_exit(vcpu);
	case KVM_EXIT_MMIO:
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		return NEXT_RUN;
	case KVM_EXIT_SHUTDOWN:
		vmm_error(-EIO, "vCPU %u: triple fault", vcpu->index);
		return NEXT_RESET;
	default:
		vmm_error(-EIO, "vCPU %u: exit %u is not known", vcpu->index, run->exit_reason);
		return NEXT_FAIL;
	}
}
