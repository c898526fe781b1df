/* SPDX-License-Identifier: MIT */
/*
 * fdt.c: writes the device tree.  A new device is a new function here, called
 * from fill(); the names and cells of its node are given by the bindings in the
 * kernel's Documentation/devicetree.
 */
#include <errno.h>
#include <libfdt.h>
#include <stdio.h>
#include <string.h>

#include "../error.h"
#include "../serial.h"
#include "cpu.h"
#include "fdt.h"
#include "map.h"

/* A tree that is being written.  After an error nothing more is done. */
struct tree {
	void *blob;
	int error; /* 0, or libfdt's */
};

/* ---- nodes and properties --------------------------------------------------- */

static void begin(struct tree *tree, const char *name)
{
	if (!tree->error)
		tree->error = fdt_begin_node(tree->blob, name);
}

/* A node that is named by its address, too. */
static void begin_at(struct tree *tree, const char *name, uint64_t address)
{
	char text[64];

	snprintf(text, sizeof(text), "%s@%llx", name, (unsigned long long)address);
	begin(tree, text);
}

static void end(struct tree *tree)
{
	if (!tree->error)
		tree->error = fdt_end_node(tree->blob);
}

static void bytes(struct tree *tree, const char *name, const void *data, size_t length)
{
	if (!tree->error)
		tree->error = fdt_property(tree->blob, name, data, (int)length);
}

static void flag(struct tree *tree, const char *name)
{
	bytes(tree, name, NULL, 0);
}

static void string(struct tree *tree, const char *name, const char *value)
{
	bytes(tree, name, value, strlen(value) + 1);
}

static void put_cells(struct tree *tree, const char *name, const uint32_t *value, size_t count)
{
	fdt32_t cell[16];

	for (size_t i = 0; i < count; i++)
		cell[i] = cpu_to_fdt32(value[i]);
	bytes(tree, name, cell, count * sizeof(cell[0]));
}

/* A property of up to 16 cells. */
#define cells(tree, name, ...)                                                     \
	put_cells(tree, name, (const uint32_t[]){ __VA_ARGS__ },                   \
		  sizeof((const uint32_t[]){ __VA_ARGS__ }) / sizeof(uint32_t))
/* A number that takes two of them. */
#define PAIR(value) (uint32_t)((uint64_t)(value) >> 32), (uint32_t)(value)

/* ---- the machine ------------------------------------------------------------ */

/* What interrupts are named by: SPI or PPI, number, how it is triggered. */
#define SPI 0
#define PPI 1
#define LEVEL_HIGH 4

/* The GIC's phandle: how other nodes refer to it. */
#define GIC 1

static void chosen(struct tree *tree, const struct fdt_boot *boot)
{
	char console[32];

	snprintf(console, sizeof(console), "/serial@%llx", MAP_SERIAL);
	begin(tree, "chosen");
	string(tree, "bootargs", boot->command_line);
	string(tree, "stdout-path", console);
	if (boot->initrd_bytes) {
		cells(tree, "linux,initrd-start", PAIR(boot->initrd));
		cells(tree, "linux,initrd-end", PAIR(boot->initrd + boot->initrd_bytes));
	}
	end(tree);
}

static void memory(struct tree *tree, const struct vm *vm)
{
	for (unsigned i = 0; i < vm->regions; i++) {
		begin_at(tree, "memory", vm->region[i].gpa);
		string(tree, "device_type", "memory");
		cells(tree, "reg", PAIR(vm->region[i].gpa), PAIR(vm->region[i].bytes));
		end(tree);
	}
}

static int cpu(struct tree *tree, struct vcpu *vcpu)
{
	uint64_t affinity;
	int code = cpu_affinity(vcpu, &affinity);

	if (code)
		return code;
	begin_at(tree, "cpu", affinity);
	string(tree, "device_type", "cpu");
	/* What it really is the guest reads from its registers. */
	string(tree, "compatible", "arm,armv8");
	string(tree, "enable-method", "psci");
	cells(tree, "reg", PAIR(affinity));
	end(tree);
	return 0;
}

static int cpus(struct tree *tree, struct vm *vm)
{
	int code = 0;

	begin(tree, "cpus");
	cells(tree, "#address-cells", 2);
	cells(tree, "#size-cells", 0);
	for (unsigned i = 0; !code && i < vm->vcpus; i++)
		code = cpu(tree, &vm->vcpu[i]);
	end(tree);
	return code;
}

/* Power, and the start of the other vCPUs: KVM answers most of it, exit.c the rest. */
static void psci(struct tree *tree)
{
	static const char compatible[] = "arm,psci-1.0\0arm,psci-0.2";

	begin(tree, "psci");
	bytes(tree, "compatible", compatible, sizeof(compatible));
	string(tree, "method", "hvc");
	end(tree);
}

static void timer(struct tree *tree)
{
	begin(tree, "timer");
	string(tree, "compatible", "arm,armv8-timer");
	cells(tree, "interrupts", PPI, MAP_TIMER_SECURE_PPI, LEVEL_HIGH,
	      PPI, MAP_TIMER_PHYSICAL_PPI, LEVEL_HIGH, PPI, MAP_TIMER_VIRTUAL_PPI, LEVEL_HIGH,
	      PPI, MAP_TIMER_HYP_PPI, LEVEL_HIGH);
	/* KVM wakes an idle vCPU for it. */
	flag(tree, "always-on");
	end(tree);
}

static void interrupt_controller(struct tree *tree, const struct vm *vm)
{
	begin_at(tree, "interrupt-controller", MAP_GICD);
	string(tree, "compatible", "arm,gic-v3");
	flag(tree, "interrupt-controller");
	cells(tree, "#interrupt-cells", 3);
	cells(tree, "phandle", GIC);
	cells(tree, "reg", PAIR(MAP_GICD), PAIR(MAP_GICD_BYTES), PAIR(MAP_GICR),
	      PAIR(MAP_GICR_BYTES * vm->vcpus));
	end(tree);
}

static void serial(struct tree *tree)
{
	begin_at(tree, "serial", MAP_SERIAL);
	string(tree, "compatible", "ns16550a");
	cells(tree, "reg", PAIR(MAP_SERIAL), PAIR(SERIAL_REGISTERS));
	cells(tree, "interrupts", SPI, MAP_SERIAL_SPI, LEVEL_HIGH);
	cells(tree, "clock-frequency", SERIAL_CLOCK_HZ);
	end(tree);
}

static int fill(struct tree *tree, struct vm *vm, const struct fdt_boot *boot)
{
	int code;

	begin(tree, "");
	string(tree, "compatible", "infill,vm");
	cells(tree, "#address-cells", 2);
	cells(tree, "#size-cells", 2);
	cells(tree, "interrupt-parent", GIC);
	chosen(tree, boot);
	memory(tree, vm);
	code = cpus(tree, vm);
	psci(tree);
	timer(tree);
	interrupt_controller(tree, vm);
	serial(tree);
	end(tree);
	return code;
}

int fdt_write(struct vm *vm, const struct fdt_boot *boot, void *at, size_t bytes_max)
{
	struct tree tree = { .blob = at, .error = fdt_create(at, (int)bytes_max) };
	int code;

	if (!tree.error)
		tree.error = fdt_finish_reservemap(at);
	code = fill(&tree, vm, boot);
	if (!code && !tree.error)
		tree.error = fdt_finish(at);
	if (!code && tree.error)
		code = vmm_error(-ENOSPC, "device tree: %s", fdt_strerror(tree.error));
	return code;
}
