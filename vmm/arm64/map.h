/* SPDX-License-Identifier: MIT */
/*
 * map.h: where things are in an arm64 guest: guest-physical addresses and
 * interrupt numbers.  fdt.c tells the guest about them.  A guest in a snapshot
 * knows them too, so whoever changes one has to refuse older state files.
 *
 *	0x0800_0000	the GIC's distributor
 *	0x080a_0000	its redistributors, 128 KiB for each vCPU
 *	0x0900_0000	the console, a 16550
 *	0x4000_0000	memory, in one piece
 */
#ifndef INFILL_VMM_ARM64_MAP_H
#define INFILL_VMM_ARM64_MAP_H

#define MAP_GICD 0x08000000ull
#define MAP_GICD_BYTES 0x10000ull
#define MAP_GICR 0x080a0000ull
#define MAP_GICR_BYTES 0x20000ull /* for each vCPU */
#define MAP_SERIAL 0x09000000ull
#define MAP_MEMORY 0x40000000ull

/* Shared interrupts (SPIs) are counted from 0 in a device tree, from 32 elsewhere. */
#define MAP_SPI_FIRST 32
#define MAP_SERIAL_SPI 1

/* Private interrupts (PPIs) of the timers, as a device tree counts them; KVM's own choice. */
#define MAP_TIMER_SECURE_PPI 13
#define MAP_TIMER_PHYSICAL_PPI 14
#define MAP_TIMER_VIRTUAL_PPI 11
#define MAP_TIMER_HYP_PPI 10

#endif
