/* SPDX-License-Identifier: MIT */
/*
 * memory.h: guest memory: what backs it, its memslots, and the memory file.
 */
#ifndef INFILL_VMM_MEMORY_H
#define INFILL_VMM_MEMORY_H

#include "file.h"
#include "vm.h"

/* The word of --backing: memfd, hugetlb, guest-memfd, anonymous; false if it is none. */
bool memory_backing_of(const char *word, enum memory_backing *backing);

/* Bytes that regions must be multiples of. */
uint64_t memory_granule(enum memory_backing backing);

/* Map REGION with memory of vm->backing, which reads as zero.  0 or -errno. */
int memory_map(struct vm *vm, struct region *region);

/* Make a memslot of a region that is mapped. */
int memory_set_slot(struct vm *vm, const struct region *region);

/* Unmap and close; what was never mapped is left alone. */
void memory_unmap(struct region *region);

/*
 * Write all of memory to FILE, a new file for PATH, which is complete then; zero pages as
 * holes.  The VM is paused.  0, or -errno after vmm_error(), and there is no FILE.
 */
int memory_save(struct vm *vm, const char *path, struct new_file *file);

/* Open a memory file, which must have BYTES; an fd or -errno. */
int memory_open(const char *path, uint64_t bytes);

/* Read all of REGION from the memory file FD, named PATH in messages. */
int memory_load(const struct region *region, int fd, const char *path);

#endif
