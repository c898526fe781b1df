/* SPDX-License-Identifier: MIT */
/*
 * engine.c: the engines, and the two that need no pager: `eager` reads the memory
 * file before the guest runs, `mmap` maps it.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"
#include "error.h"
#include "memory.h"

/* ---- eager ----------------------------------------------------------------------- */

static int eager_start(struct engine *engine)
{
	struct vm *vm = engine->vm;
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err; i++)
		err = memory_load(&vm->region[i], engine->fd, engine->options.memory);
	return err;
}

static const struct engine_ops eager = {
	.name = "eager",
	.backing = { true, true, true, true },
	.protected_vm = true,
	.prefault = true,
	.start = eager_start,
	.ready = engine_prefault,
};

/* ---- mmap ------------------------------------------------------------------------ */

/* Private: the guest's writes are not the file's. */
static int mmap_map(struct vm *vm, struct region *region, void *arg)
{
	const struct engine *engine = arg;
	void *map = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, engine->fd,
			 (off_t)region->offset);

	(void)vm;
	if (map == MAP_FAILED)
		return vmm_error(-errno, "%s: mapping it: %m", engine->options.memory);
	region->hva = map;
	region->fd = dup(engine->fd);
	region->fd_offset = region->offset;
	return region->fd < 0 ? vmm_error(-errno, "%s: %m", engine->options.memory) : 0;
}

static const struct engine_ops by_mmap = {
	.name = "mmap",
	.backing = { true },
	.prefault = true,
	.map = mmap_map,
	.ready = engine_prefault,
};

/* ---- all of them ------------------------------------------------------------------- */

const struct engine_ops *engine_find(const char *name)
{
	static const struct engine_ops *const engines[] = { &eager, &by_mmap, &engine_uffd,
							 &engine_userfault };

	for (unsigned i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
		if (!strcmp(engines[i]->name, name))
			return engines[i];
	return NULL;
}

bool engine_fill_of(const char *word, enum engine_fill *fill)
{
	static const char *const words[] = { "all", "trace", "none" };

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (!strcmp(words[i], word)) {
			*fill = (enum engine_fill)i;
			return true;
		}
	return false;
}

static int prefault_region(const struct vcpu *vcpu, const struct region *region)
{
	struct kvm_pre_fault_memory range = { .gpa = region->gpa, .size = region->bytes };

	/* Each call goes on from where the one before was interrupted. */
	while (range.size)
		if (ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range) && errno != EINTR &&
		    errno != EAGAIN)
			return vmm_error(-errno, "--prefault: at %#llx: %m",
					 (unsigned long long)range.gpa);
	return 0;
}

int engine_prefault(struct engine *engine)
{
	struct vm *vm = engine->vm;
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err && engine->options.prefault; i++)
		err = prefault_region(&vm->vcpu[0], &vm->region[i]);
	return err;
}
