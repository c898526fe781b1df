/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c: see snapshot.h.  A device that is common to all architectures adds
 * its record here, and reads it.
 */
#include <errno.h>

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

int snapshot_write(struct vm *vm, const char *memory, const char *path)
{
	struct state *state = state_new();
	int err;

	if (!state)
		return vmm_error(-ENOMEM, "state: %m");
	/* Before memory: KVM may write to the guest's when it is asked for state. */
	err = collect(vm, state);
	if (!err && vm->make_whole)
		err = vm->make_whole(vm->make_whole_arg);
	if (!err)
		err = memory_save(vm, memory);
	if (!err)
		err = state_write(state, vm, path);
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
