/* SPDX-License-Identifier: MIT */
/*
 * restore.c: a VM from its two files.
 */
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "monitor.h"
#include "restore.h"
#include "snapshot.h"

static int create(struct engine *engine, const struct restore_options *options,
		  const struct state *state)
{
	const struct vm_options vm_options = {
		.memory_bytes = state_memory_bytes(state),
		.vcpus = state_vcpus(state),
		.backing = options->backing,
		.is_protected = options->is_protected,
		.saved = state,
		.map = engine->ops->map,
		.map_arg = engine,
	};

	return vm_create(engine->vm, &vm_options);
}

static int fill(struct engine *engine, const struct state *state)
{
	const struct engine_ops *ops = engine->ops;
	int err = ops->start ? ops->start(engine) : 0;

	if (!err)
		err = snapshot_load(engine->vm, state);
	return err || !ops->ready ? err : ops->ready(engine);
}

/* Status 1 or what the VM ended with. */
static int run(struct engine *engine, const struct restore_options *options,
	       const struct state *state)
{
	int status = 1;

	if (!create(engine, options, state) && !fill(engine, state))
		status = monitor_run(engine->vm, options->control);
	vm_stop(engine->vm);
	/* Between the two: no vCPU needs the pager, and its memory is still there. */
	if (engine->ops->stop)
		engine->ops->stop(engine);
	vm_destroy(engine->vm);
	return status;
}

int restore(const struct restore_options *options)
{
	struct vm vm;
	struct engine engine = {
		.ops = options->engine, .options = options->engine_options, .vm = &vm,
	};
	struct state *state;
	int status = 1;

	if (state_read(&state, options->state))
		return 1;
	engine.fd = engine.options.pager ? -1 :
		    memory_open(engine.options.memory, state_memory_bytes(state));
	if (engine.fd >= 0 || engine.options.pager)
		status = run(&engine, options, state);
	if (engine.fd >= 0)
		close(engine.fd);
	state_free(state);
	return status;
}
