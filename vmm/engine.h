/* SPDX-License-Identifier: MIT */
/*
 * engine.h: how the memory of a restored VM gets its content.  An engine is one
 * struct of functions, and restore.c calls them in their order; a new one is
 * another file engine_NAME.c and a line in engine.c's table.
 */
#ifndef INFILL_VMM_ENGINE_H
#define INFILL_VMM_ENGINE_H

#include "vm.h"

/* What is filled that no vCPU waits for; 0 is the default. */
enum engine_fill { FILL_ALL, FILL_TRACE, FILL_NONE };

struct engine_options {
	const char *memory;         /* the memory file; NULL: the pager has it */
	const char *pager;          /* the socket of one in another process; NULL: none */
	const char *trace, *record; /* NULL: none */
	bool prefault;
	enum engine_fill fill;
};

/* One restore, from engine_ops.map() to engine_ops.stop(). */
struct engine {
	const struct engine_ops *ops;
	struct engine_options options;
	struct vm *vm;
	int fd;    /* the memory file; -1: the pager has it */
	void *own; /* the engine's */
};

struct engine_ops {
	const char *name;
	/* What it can do; anything else is wrong usage. */
	bool backing[MEMORY_BACKINGS];
	bool protected_vm; /* --protected */
	bool trace;      /* --trace and --record */
	bool pager;      /* --pager */
	bool prefault;

	/*
	 * In this order; NULL: nothing to do.  0, or -errno after vmm_error().
	 * map():   vm_options.map, for each region, before its memslot is set.
	 * start(): the VM was created.  From its end on, content must be there when
	 *          KVM or this process touches memory.
	 * ready(): the state was loaded, no vCPU has run: arch_kvm_memory() has what
	 *          must be there before one does.
	 * stop():  no vCPU runs any more; also after a failure of the others.
	 */
	int (*map)(struct vm *vm, struct region *region, void *engine);
	int (*start)(struct engine *engine);
	int (*ready)(struct engine *engine);
	void (*stop)(struct engine *engine);
};

/* The word of --fill: all, trace, none; false if it is none. */
bool engine_fill_of(const char *word, enum engine_fill *fill);

/* The engine NAME, or NULL. */
const struct engine_ops *engine_find(const char *name);

/* KVM_PRE_FAULT_MEMORY over all of memory, which has its content. */
int engine_prefault(struct engine *engine);

extern const struct engine_ops engine_uffd, engine_userfault;

#endif
