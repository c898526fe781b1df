/* SPDX-License-Identifier: MIT */
/*
 * x86.h: where things are in a guest, and what the files of x86/ know of each
 * other.
 */
#ifndef INFILL_VMM_X86_H
#define INFILL_VMM_X86_H

#include "vm.h"

/* Memory that is not there: from 3 to 4 GiB are the interrupt controllers and KVM's pages. */
#define X86_GAP_BEGIN 0xc0000000ull
#define X86_GAP_END 0x100000000ull
#define X86_IOAPIC 0xfec00000u
#define X86_LAPIC 0xfee00000u
/* Intel needs 4 pages in the gap for real mode. */
#define X86_IDENTITY_MAP 0xfeffc000ull
#define X86_TSS 0xfeffd000ull

/* What booting puts below 1 MiB.  The firmware's tables are where the kernel looks for them. */
#define X86_GDT 0x500ull
#define X86_BOOT_PARAMS 0x7000ull
#define X86_PAGE_TABLES 0x9000ull
#define X86_COMMAND_LINE 0x20000ull
#define X86_COMMAND_LINE_MAX 0x10000ull
#define X86_LOW_END 0x9fc00ull
#define X86_ACPI 0xe0000ull
#define X86_ACPI_END 0x100000ull

/* Ports, and the console's interrupt. */
#define X86_SERIAL 0x3f8
#define X86_SERIAL_IRQ 4
#define X86_PM 0x600 /* acpi.c */
#define X86_KEYBOARD 0x64
#define X86_SCI_IRQ 9

/* Write the ACPI tables for VM; the guest finds them at X86_ACPI. */
void x86_acpi(struct vm *vm);

/* The guest's access to a power management port, X86_PM + OFFSET: see acpi.c. */
uint32_t x86_pm_read(unsigned offset);
enum next x86_pm_write(unsigned offset, uint32_t value);
#define X86_PM_PORTS 16

/* Give VCPU its CPUID: what the host supports, and what is its own. */
int x86_cpuid(struct vcpu *vcpu);

#endif
