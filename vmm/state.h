/* SPDX-License-Identifier: MIT */
/*
 * state.h: the state file: all of a VM but its memory.
 *
 * A header (magic, version, architecture, memory size and backing-independent
 * layout, number of vCPUs, bytes, XXH3 checksum of all else), then
 * records: kind, index (a vCPU's, or 0), bytes, data, padded to 8 bytes.
 * Everything is little-endian as the machine is.  What reads it trusts
 * nothing: sizes are checked before use, unknown versions are refused.
 */
#ifndef INFILL_VMM_STATE_H
#define INFILL_VMM_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "file.h"

struct vm;

/* In memory: what was added, or what was read from a file. */
struct state;

/*
 * A kind is 'A'..'Z' << 8 | number.  The architecture's own are in its state.c;
 * those of 'V' are common: what the file says of the VM, and the console.
 */
#define STATE_LAYOUT ('V' << 8 | 1) /* struct state_region for each region */
#define STATE_SERIAL ('V' << 8 | 2)
#define STATE_SERIAL_UNSENT ('V' << 8 | 3) /* bytes that nobody took yet; may be missing */

struct state_region {
	uint64_t gpa, bytes, offset;
};

struct state *state_new(void);
void state_free(struct state *state);

/* Append a copy of DATA.  0, or -errno after vmm_error(). */
int state_add(struct state *state, uint32_t kind, uint32_t index, const void *data, size_t bytes);

/*
 * The record of KIND and INDEX, or NULL; *BYTES is its size.  Owned by STATE.
 * state_get_fixed() also fails, with an error line, if the record is missing or
 * has not exactly BYTES, and copies it to DATA.
 */
const void *state_get(const struct state *state, uint32_t kind, uint32_t index, size_t *bytes);
int state_get_fixed(const struct state *state, uint32_t kind, uint32_t index, void *data,
		    size_t bytes);

/*
 * Write to FILE, a new file for PATH, which is complete then.  0, or -errno after
 * vmm_error(), and there is no FILE.
 */
int state_write(const struct state *state, const struct vm *vm, const char *path,
		struct new_file *file);

/*
 * Read and verify.  0, or -errno after vmm_error(): -EBADMSG: not such a file, or damaged;
 * -EPROTO: of another version or architecture.
 */
int state_read(struct state **state, const char *path);

/* Add where VM's memory lies. */
int state_add_layout(struct state *state, const struct vm *vm);

/* 0 if the layout that was saved is that of VM; else -EPROTO after vmm_error(). */
int state_check_layout(const struct state *state, const struct vm *vm);

/* Of a state that was read: what the VM has to be created with. */
uint64_t state_memory_bytes(const struct state *state);
unsigned state_vcpus(const struct state *state);

#endif
