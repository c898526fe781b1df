/* SPDX-License-Identifier: MIT */
/*
 * engine_pager.c: memory is missing until the guest, KVM or this process touches it,
 * and libinfill fills it; what nobody touches follows after that.  `uffd` has a
 * thread of libinfill fill what a userfaultfd reports; with `userfault` a vCPU that
 * misses a page exits, and fills it on its own thread, or asks a pager in another
 * process for it.  All that a VMM needs to
 * embed libinfill is here.
 */
#include <errno.h>
#include <infill.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch.h"
#include "engine.h"
#include "error.h"
#include "kvm_api.h"
#include "memory.h"

/* So much is touched at once; a multiple of every page's size. */
#define TOUCH_BYTES (2u << 20)

struct pager {
	struct infill_image *image;
	struct infill_memory *memory;
	struct infill_pool *pool;
	struct infill_session *session;
	struct infill_vcpu *vcpu[VCPUS_MAX]; /* userfault */
	pthread_t toucher;                   /* uffd */
	bool touching;                       /* it is to be joined */
	pthread_mutex_t lock;                /* the rest */
	pthread_cond_t changed;
	int error;      /* the session's; 0: it goes on */
	bool touched;   /* all that could be */
	int touch_error;
};

/* The session can serve nobody any more: whoever waits for a page does so for ever. */
static void note_failure(struct pager *pager, int error)
{
	pthread_mutex_lock(&pager->lock);
	pager->error = error;
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->lock);
}

/* On a thread of libinfill, or a vCPU's. */
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
		vmm_error(event->error, "pager: %s", event->text);
		note_failure(engine->own, event->error);
		vm_end(engine->vm, NEXT_FAIL);
		break;
	}
}

static uint32_t backing_of(enum memory_backing backing)
{
	switch (backing) {
	case MEMORY_HUGETLB:
		return INFILL_BACKING_HUGETLB;
	case MEMORY_GUEST_MEMFD:
		return INFILL_BACKING_GUEST_MEMFD;
	case MEMORY_ANONYMOUS:
		return INFILL_BACKING_ANON;
	default:
		return INFILL_BACKING_SHMEM;
	}
}

static int describe_memory(const struct vm *vm, struct infill_memory *memory, bool memslots)
{
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err; i++) {
		struct infill_region region = {
			.size = sizeof(region),
			.gpa = vm->region[i].gpa,
			.hva = (uintptr_t)vm->region[i].hva,
			.length = vm->region[i].bytes,
			.offset = vm->region[i].offset,
			.page_size = memory_granule(vm->backing),
			.backing = backing_of(vm->backing),
		};

		if (memslots)
			region.slot = vm->region[i].slot;
		if (memslots && vm->backing == MEMORY_GUEST_MEMFD) {
			region.slot_flags = KVM_MEM_GUEST_MEMFD;
			region.guest_memfd = vm->region[i].fd;
			region.guest_memfd_offset = vm->region[i].fd_offset;
		}
		err = infill_memory_add(memory, &region);
	}
	return err;
}

static uint32_t fill_of(enum engine_fill fill)
{
	switch (fill) {
	case FILL_TRACE:
		return INFILL_FILL_TRACE;
	case FILL_NONE:
		return INFILL_FILL_NONE;
	default:
		return INFILL_FILL_ALL;
	}
}

/* The pager is another process, `infill serve`. */
static int connect_session(struct engine *engine, struct pager *pager)
{
	const struct infill_session_options options = {
		.size = sizeof(options),
		.event = on_event,
		.event_arg = engine,
		.flags = engine->options.prefault ? INFILL_SESSION_PREFAULT : 0,
	};

	return infill_session_connect_vm(&pager->session, engine->options.pager, engine->vm->fd,
					 pager->memory, engine->vm->vcpus, &options);
}

static int start_session(struct engine *engine, struct pager *pager, bool userfault)
{
	const struct infill_session_options options = {
		.size = sizeof(options),
		.fill = fill_of(engine->options.fill),
		.trace = engine->options.trace,
		.record = engine->options.record,
		.event = on_event,
		.event_arg = engine,
		.flags = engine->options.prefault ? INFILL_SESSION_PREFAULT : 0,
	};

	if (userfault)
		return infill_session_start_vm(&pager->session, pager->pool, engine->vm->fd,
					       pager->memory, pager->image, &options);
	return infill_session_start(&pager->session, pager->pool, pager->memory, pager->image,
				    &options);
}

/* For vm->pager_stat: names and units as infill-stat(1) has them. */
static void write_stat(FILE *out, void *arg)
{
	const struct pager *pager = arg;
	struct infill_counters c = { .size = sizeof(c) };
	int err = infill_session_counters(pager->session, &c);
	const struct {
		const char *name;
		uint64_t value;
	} members[] = {
		{ "pages", c.pages }, { "missing", c.missing }, { "faults", c.faults },
		{ "installs", c.installs }, { "demand_pages", c.demand_pages },
		{ "trace_pages", c.trace_pages }, { "rest_pages", c.rest_pages },
		{ "prefault_bytes", c.prefault_bytes }, { "stall_ns", c.stall_ns },
		{ "resident_ns", c.resident_ns },
	};

	for (unsigned i = 0; !err && i < sizeof(members) / sizeof(members[0]); i++)
		fprintf(out, "%s\"%s\": %llu", i ? ", " : "{", members[i].name,
			(unsigned long long)members[i].value);
	fprintf(out, err ? "null" : "}");
}

/* With a pager of this process: its image, its threads, the session. */
static int start_own(struct engine *engine, struct pager *pager, bool userfault)
{
	int err = infill_image_open_fd(&pager->image, engine->fd, engine->options.memory, NULL);

	if (!err)
		err = infill_pool_new(&pager->pool, NULL);
	return err ? err : start_session(engine, pager, userfault);
}

static int pager_start(struct engine *engine, bool userfault)
{
	struct pager *pager = calloc(1, sizeof(*pager));
	int err;

	if (!pager)
		return vmm_error(-ENOMEM, "pager: %m");
	pthread_mutex_init(&pager->lock, NULL);
	pthread_cond_init(&pager->changed, NULL);
	engine->own = pager;
	err = infill_memory_new(&pager->memory);
	if (!err)
		err = describe_memory(engine->vm, pager->memory, userfault);
	if (!err)
		err = engine->options.pager ? connect_session(engine, pager) :
					      start_own(engine, pager, userfault);
	if (!err) {
		engine->vm->pager_stat = write_stat;
		engine->vm->pager_stat_arg = pager;
	}
	return err ? vmm_error(err, "pager: %s", infill_error()) : 0;
}

static void pager_stop(struct engine *engine)
{
	struct pager *pager = engine->own;

	if (!pager)
		return;
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		infill_vcpu_free(pager->vcpu[i]);
	infill_session_stop(pager->session);
	/* Now it waits for no page any more. */
	note_failure(pager, -ECANCELED);
	if (pager->touching)
		pthread_join(pager->toucher, NULL);
	infill_pool_free(pager->pool);
	infill_memory_free(pager->memory);
	infill_image_close(pager->image);
	free(pager);
	engine->own = NULL;
}

/* ---- uffd ------------------------------------------------------------------------- */

/* False once the session has failed: what is missing stays so. */
static bool goes_on(struct pager *pager)
{
	bool good;

	pthread_mutex_lock(&pager->lock);
	good = !pager->error;
	pthread_mutex_unlock(&pager->lock);
	return good;
}

static int touch(struct pager *pager, const struct region *region)
{
	uint64_t bytes;

	for (uint64_t at = 0; at < region->bytes && goes_on(pager); at += bytes) {
		bytes = region->bytes - at < TOUCH_BYTES ? region->bytes - at : TOUCH_BYTES;
		/* Unlike a read it does not raise SIGBUS for a page that the image cannot give. */
		if (madvise(region->hva + at, bytes, MADV_POPULATE_READ))
			return -errno;
	}
	return 0;
}

static void *touch_all(void *arg)
{
	const struct engine *engine = arg;
	struct pager *pager = engine->own;
	int err = 0;

	for (unsigned i = 0; i < engine->vm->regions && !err; i++)
		err = touch(pager, &engine->vm->region[i]);
	pthread_mutex_lock(&pager->lock);
	pager->touched = true;
	pager->touch_error = err;
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->lock);
	return NULL;
}

/*
 * Who reads a page that is missing waits for the pager, and for ever when the session
 * fails meanwhile.  That shall be a thread of which nothing else depends: it is joined
 * when the session has been stopped.
 */
static int wait_for_all(void *arg)
{
	struct engine *engine = arg;
	struct pager *pager = engine->own;
	int err, failed;

	pager->touched = false;
	err = pager->touching ? EBUSY : pthread_create(&pager->toucher, NULL, touch_all, engine);
	if (err)
		return vmm_error(-err, "pager: its thread: %m");
	pager->touching = true;
	pthread_mutex_lock(&pager->lock);
	while (!pager->touched && !pager->error)
		pthread_cond_wait(&pager->changed, &pager->lock);
	failed = pager->error;
	pthread_mutex_unlock(&pager->lock);
	if (failed)
		return vmm_error(failed, "pager: it failed before all of memory was there: %m");
	pthread_join(pager->toucher, NULL);
	pager->touching = false;
	err = pager->touch_error;
	return err ? vmm_error(err, "pager: memory that cannot be read: %m") : 0;
}

/*
 * On arm64 KVM_RUN waits for a page of a userfaultfd until it comes, or the thread is killed: the
 * signal that stops a vCPU does not end it.  When the session has failed only its end does, by
 * closing the userfaultfd.  From then on what is missing reads as zeros, so that memory is taken
 * away first: a vCPU that has not seen its signal yet gets none of them.
 */
static void let_go(void *arg)
{
	struct engine *engine = arg;
	struct pager *pager = engine->own;

	for (unsigned i = 0; i < engine->vm->regions; i++)
		if (mprotect(engine->vm->region[i].hva, engine->vm->region[i].bytes, PROT_NONE)) {
			vmm_error(-errno, "pager: memory cannot be taken from the guest: %m");
			_exit(1); /* which kills the vCPUs' threads first */
		}
	infill_session_stop(pager->session);
	pager->session = NULL;
}

static int uffd_start(struct engine *engine)
{
	int err = pager_start(engine, false);

	engine->vm->make_whole = wait_for_all;
	engine->vm->make_whole_arg = engine;
	if (!err) {
		engine->vm->let_go = let_go;
		engine->vm->let_go_arg = engine;
	}
	return err;
}

const struct engine_ops engine_uffd = {
	.name = "uffd",
	.backing = { true, true, false, true },
	.trace = true,
	.start = uffd_start,
	.stop = pager_stop,
};

/* ---- userfault -------------------------------------------------------------------- */

/* On the vCPU's thread: the guest touched a page that is missing. */
static enum next fill_page(struct vcpu *vcpu, void *arg)
{
	const struct engine *engine = arg;
	const struct pager *pager = engine->own;
	int err = infill_vcpu_exit(pager->vcpu[vcpu->index], vcpu->run);

	if (!err || err == -EINTR) /* KVM_RUN sees why it was interrupted */
		return NEXT_RUN;
	vmm_error(err < 0 ? err : -EFAULT, "vCPU %u: %s", vcpu->index,
		  err < 0 ? infill_error() : "guest memory cannot be accessed");
	return NEXT_FAIL;
}

/* What this process reads of a guest_memfd faults nowhere: it would be saved as zeros. */
static int fill_all(void *arg)
{
	const struct engine *engine = arg;
	const struct pager *pager = engine->own;
	const struct vm *vm = engine->vm;
	int err = 0;

	for (unsigned i = 0; i < vm->regions && !err; i++)
		err = infill_session_fill(pager->session, vm->region[i].gpa, vm->region[i].bytes);
	return err ? vmm_error(err, "pager: %s", infill_error()) : 0;
}

static int userfault_start(struct engine *engine)
{
	struct vm *vm = engine->vm;
	int err = pager_start(engine, true);
	struct pager *pager = engine->own;

	for (unsigned i = 0; i < vm->vcpus && !err; i++) {
		err = infill_vcpu_new(&pager->vcpu[i], pager->session, vm->vcpu[i].fd);
		if (err)
			vmm_error(err, "pager: %s", infill_error());
	}
	vm->memory_fault = fill_page;
	vm->memory_fault_arg = engine;
	vm->make_whole = fill_all;
	vm->make_whole_arg = engine;
	return err;
}

/* KVM does not exit for what it accesses itself, so that must be there. */
static int fill_for_kvm(void *arg, uint64_t gpa, uint64_t bytes)
{
	const struct pager *pager = arg;
	int err = infill_session_fill(pager->session, gpa, bytes);

	return err ? vmm_error(err, "pager: %s", infill_error()) : 0;
}

static int userfault_ready(struct engine *engine)
{
	struct vm *vm = engine->vm;
	struct pager *pager = engine->own;
	int err = arch_kvm_memory(vm, fill_for_kvm, pager);

	if (err || !engine->options.prefault || !engine->options.trace)
		return err;
	/* The guest finds what it touched first the last time. */
	err = infill_session_wait(pager->session, INFILL_WAIT_TRACE, -1);
	for (unsigned i = 0; i < vm->vcpus && !err; i++)
		err = infill_vcpu_prefault(pager->vcpu[i], 0);
	return err ? vmm_error(err, "pager: %s", infill_error()) : 0;
}

const struct engine_ops engine_userfault = {
	.name = "userfault",
	.backing = { true, true, true, true },
	.protected_vm = true,
	.trace = true,
	.pager = true,
	.prefault = true,
	.start = userfault_start,
	.ready = userfault_ready,
	.stop = pager_stop,
};
