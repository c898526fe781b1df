/* SPDX-License-Identifier: MIT */
/*
 * engine_uffd.c: memory is missing until the guest, KVM or this process touches it,
 * and libinfill fills it by userfaultfd; what nobody touches follows after that.
 */
#include <errno.h>
#include <infill.h>
#include <stdlib.h>

#include "engine.h"
#include "error.h"
#include "memory.h"

struct pager {
	struct infill_image *image;
	struct infill_memory *memory;
	struct infill_pool *pool;
	struct infill_session *session;
};

/* On the pool's thread. */
static void on_event(struct infill_session *session, const struct infill_event *event, void *arg)
{
	struct engine *engine = arg;

	(void)session;
	switch (event->kind) {
	case INFILL_EVENT_TRACE_IGNORED:
	case INFILL_EVENT_TRACE_FAILED:
	case INFILL_EVENT_POISON:
		vmm_error(event->error, "pager: %s", event->text);
		break;
	case INFILL_EVENT_ERROR:
		/* The vCPUs would wait for ever. */
		vmm_error(event->error, "pager: %s", event->text);
		vm_end(engine->vm, NEXT_FAIL);
		break;
	}
}

static int describe_memory(const struct vm *vm, struct infill_memory *memory)
{
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err; i++) {
		const struct infill_region region = {
			.size = sizeof(region),
			.gpa = vm->region[i].gpa,
			.hva = (uintptr_t)vm->region[i].hva,
			.length = vm->region[i].bytes,
			.offset = vm->region[i].offset,
			.page_size = memory_granule(vm->backing),
			.backing = vm->backing == MEMORY_HUGETLB ? INFILL_BACKING_HUGETLB :
								   INFILL_BACKING_SHMEM,
		};

		err = infill_memory_add(memory, &region);
	}
	return err;
}

static int uffd_start(struct engine *engine)
{
	const struct infill_session_options options = {
		.size = sizeof(options),
		.trace = engine->options.trace,
		.record = engine->options.record,
		.event = on_event,
		.event_arg = engine,
	};
	struct pager *pager = calloc(1, sizeof(*pager));
	int err;

	if (!pager)
		return vmm_error(-ENOMEM, "pager: %m");
	engine->own = pager;
	err = infill_image_open_fd(&pager->image, engine->fd, engine->options.memory, NULL);
	if (!err)
		err = infill_memory_new(&pager->memory);
	if (!err)
		err = describe_memory(engine->vm, pager->memory);
	if (!err)
		err = infill_pool_new(&pager->pool, NULL);
	if (!err)
		err = infill_session_start(&pager->session, pager->pool, pager->memory,
					   pager->image, &options);
	return err ? vmm_error(err, "pager: %s", infill_error()) : 0;
}

static void uffd_stop(struct engine *engine)
{
	struct pager *pager = engine->own;

	if (!pager)
		return;
	infill_session_stop(pager->session);
	infill_pool_free(pager->pool);
	infill_memory_free(pager->memory);
	infill_image_close(pager->image);
	free(pager);
	engine->own = NULL;
}

const struct engine_ops engine_uffd = {
	.name = "uffd",
	.backing = { true, true, false },
	.trace = true,
	.start = uffd_start,
	.stop = uffd_stop,
};
