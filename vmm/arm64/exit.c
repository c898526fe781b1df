/* SPDX-License-Identifier: MIT */
/*
 * exit.c: what an arm64 guest asks of the VMM: the console's registers, which
 * are memory-mapped, and PSCI's power-off and reset.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../arch.h"
#include "../error.h"
#include "../serial.h"
#include "map.h"

/* True for one byte of the console: its driver uses no other size. */
static bool is_serial(uint64_t address, uint32_t length)
{
	return address >= MAP_SERIAL && address < MAP_SERIAL + SERIAL_REGISTERS && length == 1;
}

static void mmio(struct vcpu *vcpu)
{
	struct serial *serial = vcpu->vm->serial;
	uint64_t address = vcpu->run->mmio.phys_addr;
	uint8_t *data = vcpu->run->mmio.data;
	bool console = is_serial(address, vcpu->run->mmio.len);

	if (console && vcpu->run->mmio.is_write)
		serial_write(serial, (unsigned)(address - MAP_SERIAL), data[0]);
	else if (console)
		data[0] = serial_read(serial, (unsigned)(address - MAP_SERIAL));
	else if (!vcpu->run->mmio.is_write)
		memset(data, 0xff, sizeof(vcpu->run->mmio.data));
}

static enum next system_event(const struct vcpu *vcpu)
{
	switch (vcpu->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return NEXT_POWER_OFF;
	case KVM_SYSTEM_EVENT_RESET:
		return NEXT_RESET;
	default:
		vmm_error(-EIO, "vCPU %u: system event %u: not one of an arm64 guest", vcpu->index,
			  vcpu->run->system_event.type);
		return NEXT_FAIL;
	}
}

enum next arch_exit(struct vcpu *vcpu)
{
	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_MMIO:
		mmio(vcpu);
		return NEXT_RUN;
	case KVM_EXIT_SYSTEM_EVENT:
		return system_event(vcpu);
	default:
		vmm_error(-EIO, "vCPU %u: exit reason %u: not known on arm64", vcpu->index,
			  vcpu->run->exit_reason);
		return NEXT_FAIL;
	}
}
