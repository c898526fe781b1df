/* SPDX-License-Identifier: MIT */
/*
 * vmset.h: the VMs that a process serves, one session each, and those whose
 * userfaultfd is only kept.  Belongs to one thread; sessions report to it
 * through an eventfd.  Internal; may change freely.
 */
#ifndef INFILL_VMSET_H
#define INFILL_VMSET_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "loop.h"
#include "serve.h"
#include "vm.h"

#define VMSET_KINDS (INFILL_EVENT_ERROR + 1)

struct vmset;
struct warm;

struct guest {
	struct vm vm;
	struct vmset *set;
	struct infill_session *session; /* NULL: vm.failed before it had one */
	uint64_t bytes, page_size;
	_Atomic uint32_t events;        /* 1 << kind, not yet looked at */
	pthread_mutex_t lock;           /* note */
	char note[VMSET_KINDS][256];    /* the last text of each kind */
	bool resident;                  /* it has said so; infill_session_wait() may come later */
	bool finished;                  /* to be removed by the next sweep */
	struct guest *next;
};

struct vmset_report {
	void (*accepted)(void *arg, uint64_t id);
	void (*failed)(void *arg, uint64_t id, const char *why); /* from now on only kept */
	/* Nothing has to be kept; GIVEN: vm->count. */
	void (*ended)(void *arg, uint64_t id, unsigned given);
	void *arg;
};

struct vmset {
	const struct server *server;
	struct vmset_report report;
	struct infill_image *image;
	struct infill_pool *pool;
	struct infill_cache *cache;
	struct warm *warm;
	char *broken;        /* why no VM can be served: the image has changed */
	struct guest *first;
	unsigned count;
	int wake;            /* eventfd */
	bool draining;
	json_t *ended;       /* what control_describe() said of the last few */
};

/*
 * Open the image, start the pool.  Starts threads.  0 or -errno; after a
 * failure vmset_free() is still due.
 */
int vmset_init(struct vmset *set, const struct server *server, const struct vmset_report *report);

/* Stop all sessions and free everything; files of VMs are closed. */
void vmset_free(struct vmset *set);

/* Begin to serve VM, which is the set's from now on. */
void vmset_take(struct vmset *set, struct vm *vm);

/* Take part in a turn, and do what is due after one. */
void vmset_poll(struct vmset *set, struct loop *loop);
void vmset_sweep(struct vmset *set);

/* From now on let VMs go that have nothing missing. */
void vmset_drain(struct vmset *set);

/* Let all go; on_error to those that have something missing. */
void vmset_stop_now(struct vmset *set);

#endif
