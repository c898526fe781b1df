/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c: see snapshot.h.  A device that is common to all architectures adds
 * its record here, and reads it.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "memory.h"
#include "snapshot.h"

static int collect(struct vm *vm, struct state *state)
{
	int err = state_add_layout(state, vm);

	if (!err)
		err = arch_save(vm, state);
	return err ? err : serial_save(vm->serial, state);
}

/*
 * Give both files their names, so that whoever is killed in between never leaves a state
 * file beside a memory file of another time: without its state file no memory file is
 * restored.  Each step is on the disk before the next one.
 */
static int place(struct new_file *memory, struct new_file *state)
{
	int err = unlink(state->path) && errno != ENOENT ? -errno : 0;

	if (err) {
		vmm_error(err, "%s: %m", state->path);
	} else {
		file_sync_folder(state->path);
		err = file_place(memory);
	}
	if (err) {
		file_drop(memory);
		file_drop(state);
		return err;
	}
	file_sync_folder(memory->path);
	err = file_place(state);
	file_sync_folder(state->path);
	return err;
}

int snapshot_save(struct vm *vm, const struct state *state, const char *memory, const char *path)
{
	struct new_file memory_file, state_file;
	int err;

	if (!strcmp(memory, path))
		return vmm_error(-EINVAL, "%s: for both memory and state: give two files", path);
	err = memory_save(vm, memory, &memory_file);
	if (err)
		return err;
	err = state_write(state, vm, path, &state_file);
	if (!err)
		return place(&memory_file, &state_file);
	file_drop(&memory_file);
	return err;
}

int snapshot_write(struct vm *vm, const char *memory, const char *path)
{
	struct state *state;
	int err;

	/* A read of it would be SIGSEGV. */
	if (vm->is_protected)
		return vmm_error(-EPERM, "snapshot: a protected VM's memory is the guest's alone");
	state = state_new();
	if (!state)
		return vmm_error(-ENOMEM, "state: %m");
	err = vm->make_whole ? vm->make_whole(vm->make_whole_arg) : 0;
	/* Between the two: KVM may write to guest memory when it is asked for state. */
	if (!err)
		err = collect(vm, state);
	if (!err)
		err = snapshot_save(vm, state, memory, path);
	state_free(state);
	return err;
}

int snapshot_load(struct vm *vm, const struct state *state)
{
	int err = state_check_layout(state, vm);

	if (!err)
		err = arch_load(vm, state);
	return err ? err : serial_load(vm->serial, state);
}
