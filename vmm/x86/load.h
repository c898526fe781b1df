/* SPDX-License-Identifier: MIT */
/*
 * load.h: what both ways to boot have in common: files that go into guest memory, and
 * what every kernel is told.
 */
#ifndef INFILL_VMM_X86_LOAD_H
#define INFILL_VMM_X86_LOAD_H

#include "vm.h"

/* A file that is to be loaded. */
struct source {
	const char *path;
	int fd;
	uint64_t bytes;
};

/* A range of guest memory. */
struct range {
	uint64_t begin, bytes;
};

/* One line of the memory map; its types are the same wherever a PC's kernel reads one. */
struct map_line {
	struct range range;
	uint32_t type;
};

#define MAP_RAM 1
#define MAP_RESERVED 2
#define MAP_LINES 4

/* 0, or -errno after vmm_error(). */
int source_open(struct source *source, const char *path);
void source_close(struct source *source);

/* Have LENGTH bytes at OFFSET, all of which must be in the file. */
int source_get(const struct source *source, void *data, uint64_t length, uint64_t offset);

/*
 * Read LENGTH bytes at OFFSET into the guest at GPA, which must have SPACE bytes there, above
 * what booting puts below 1 MiB.
 */
int source_load(struct vm *vm, const struct source *source, uint64_t offset, uint64_t length,
		uint64_t gpa, uint64_t space);

/*
 * Load the initrd PATH as high as it may be, its last byte at MAX at most, but above the
 * kernel's END.
 */
int load_initrd(struct vm *vm, const char *path, uint64_t end, uint64_t max, struct range *where);

/* Put the command line to X86_COMMAND_LINE.  MOST: bytes that the kernel takes. */
int load_command_line(struct vm *vm, const char *text, uint64_t most);

/* Write what is where into MAP; the number of lines. */
unsigned memory_map_of(const struct vm *vm, struct map_line map[MAP_LINES]);

#endif
