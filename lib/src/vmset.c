/* SPDX-License-Identifier: MIT */
/*
 * vmset.c: the VMs that a process serves.  Internal; may change freely.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cache.h"
#include "control.h"
#include "err.h"
#include "handshake.h"
#include "lent.h"
#include "memory.h"
#include "session.h"
#include "vmset.h"
#include "warm.h"

#define PROBE_MS 1000  /* how often to look whether a VM without a pidfd is gone */
#define ENDED_KEPT 16
#define KILL_WAIT_MS 2000

/* ---- sessions' threads ---------------------------------------------------------- */

static void on_event(struct infill_session *session, const struct infill_event *event, void *arg)
{
	struct guest *g = arg;
	uint64_t one = 1;

	(void)session;
	if (event->kind >= VMSET_KINDS)
		return;
	pthread_mutex_lock(&g->lock);
	snprintf(g->note[event->kind], sizeof(g->note[0]), "%s", event->text ? event->text : "");
	pthread_mutex_unlock(&g->lock);
	/* Release: who sees the bit sees the note. */
	atomic_fetch_or_explicit(&g->events, 1u << event->kind, memory_order_release);
	(void)!write(g->set->wake, &one, sizeof(one));
}

/* ---- setting up ------------------------------------------------------------------ */

static bool same_identity(const struct infill_identity *a, const struct infill_identity *b)
{
	return a->bytes == b->bytes && a->inode == b->inode && a->mtime_sec == b->mtime_sec &&
	       a->mtime_nsec == b->mtime_nsec;
}

/*
 * An image that changed while no worker had it open would otherwise be taken
 * for a new one and served to the next VM, half old and half new.
 */
static int open_image(struct vmset *set)
{
	const struct server *server = set->server;
	struct infill_identity now;
	int rc = infill_image_open_fd(&set->image, server->image_fd, server->options.image, NULL);

	if (rc)
		return rc;
	infill_image_identity(set->image, &now);
	if (same_identity(&now, &server->identity))
		return 0;
	infill_image_close(set->image);
	set->image = NULL;
	return err_set(-ESTALE, "%s: has changed since the daemon was started: start it again",
		       server->options.image);
}

static int open_cache(struct vmset *set)
{
	if (set->server->cache_fd < 0)
		return 0;
	return cache_adopt(&set->cache, set->image, set->server->cache_fd,
			   set->server->cache_bits_fd);
}

int vmset_init(struct vmset *set, const struct server *server, const struct vmset_report *report)
{
	struct infill_pool_options pool = { .size = sizeof(pool), .threads = server->options.threads };
	int rc;

	*set = (struct vmset){ .server = server, .report = *report, .wake = -1 };
	set->ended = json_array();
	if (!set->ended)
		return err_set(-ENOMEM, "worker: %m");
	set->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (set->wake < 0)
		return err_set(-errno, "worker: eventfd: %m");
	rc = infill_pool_new(&set->pool, &pool);
	if (rc)
		return rc;
	rc = open_image(set);
	if (!rc)
		rc = open_cache(set);
	if (rc) {
		/* VMs that live have to be told, so this is no reason to end. */
		set->broken = strdup(err_text());
		server_log(server, LOG_ERR, "%s", err_text());
	} else if (server->session.trace && server->session.fill != INFILL_FILL_NONE) {
		set->warm = warm_start(set->image, server->session.trace);
	}
	return 0;
}

static void guest_free(struct guest *g)
{
	infill_session_stop(g->session);
	vm_close(&g->vm);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

void vmset_free(struct vmset *set)
{
	warm_stop(set->warm);
	while (set->first) {
		struct guest *g = set->first;

		set->first = g->next;
		guest_free(g);
	}
	infill_pool_free(set->pool);
	infill_cache_free(set->cache);
	infill_image_close(set->image);
	free(set->broken);
	json_decref(set->ended);
	fd_close(&set->wake);
}

/* ---- beginnings -------------------------------------------------------------------- */

static void log_begin(const struct guest *g, unsigned regions)
{
	const struct vm *vm = &g->vm;

	if (vm->accepted)
		server_log(g->set->server, LOG_NOTICE, "VM %llu (pid %d) goes on",
			   (unsigned long long)vm->id, (int)vm->pid);
	else
		server_log(g->set->server, LOG_INFO, "VM %llu from pid %d: %llu MiB in %u region%s%s",
			   (unsigned long long)vm->id, (int)vm->pid,
			   (unsigned long long)(g->bytes >> 20), regions, regions == 1 ? "" : "s",
			   vm->shared ? ", shared" : "");
}

/* The VM whose recording window is open, or NULL. */
static const struct guest *recorded(const struct vmset *set)
{
	for (const struct guest *g = set->first; g; g = g->next)
		if (g->session && infill_session_wait(g->session, INFILL_WAIT_RECORDED, 0) == -ETIMEDOUT)
			return g;
	return NULL;
}

/* Two recordings to one file would end as the one that is finished last. */
static void leave_recording(const struct guest *g, struct infill_session_options *options)
{
	const struct guest *other = options->record && !g->vm.accepted ? recorded(g->set) : NULL;

	if (!other)
		return;
	server_log(g->set->server, LOG_WARNING, "VM %llu (pid %d): is not recorded: %s: VM %llu is being "
		   "recorded to it: let one VM run", (unsigned long long)g->vm.id, (int)g->vm.pid,
		   options->record, (unsigned long long)other->vm.id);
	options->record = NULL;
}

static struct infill_session_options session_options(struct guest *g)
{
	struct infill_session_options options = g->set->server->session;

	options.event = on_event;
	options.event_arg = g;
	options.timeline_fd = g->set->server->timeline_fd;
	/* Not the socket: Firecracker before 1.12 closes it at once and lives on. */
	options.watch_fd = g->vm.pidfd;
	leave_recording(g, &options);
	return options;
}

static void served(struct guest *g, const struct infill_memory *memory)
{
	g->bytes = infill_memory_bytes(memory);
	g->page_size = memory->region[0].page_size;
	log_begin(g, memory->count);
}

/* ---- KVM Userfault -------------------------------------------------------------- */

static int adopt_files(struct guest *g, const struct wire_vm *wire)
{
	const struct infill_session_options options = session_options(g);
	struct userfault_part part[INFILL_MEMORY_REGIONS_MAX];
	struct session_files files = {
		.uffd = g->vm.uffd, .state = g->vm.state, .sock = g->vm.sock, .part = part,
		.channels = wire->channels, .protected = wire->protected,
	};
	int rc;

	if (wire->uffd != (g->vm.uffd >= 0))
		return err_set(-EPROTO, wire->uffd ? "hello: announces a userfaultfd, and none came" :
						     "hello: a userfaultfd came that it does not announce");
	rc = lent_map(wire, g->vm.fd, g->vm.count, part);
	if (rc)
		return rc;
	files.channel = g->vm.fd + 1 + wire->files;
	rc = session_adopt_userfault(&g->session, g->set->pool, wire->memory, g->set->image, &files,
				     &options);
	if (!rc)
		served(g, wire->memory);
	return rc;
}

static int adopt_binary(struct guest *g)
{
	struct wire_vm wire;
	int rc = wire_parse(g->vm.hello, g->vm.length, infill_image_bytes(g->set->image), &wire);

	if (rc)
		return rc;
	rc = adopt_files(g, &wire);
	infill_memory_free(wire.memory);
	return rc;
}

/* ---- userfaultfd ---------------------------------------------------------------- */

static int adopt_memory(struct guest *g, const struct infill_memory *memory)
{
	const struct vmset *set = g->set;
	struct infill_session_options options = session_options(g);
	int rc;

	options.cache = g->vm.shared ? set->cache : NULL;
	rc = infill_session_adopt_state(&g->session, set->pool, memory, set->image, g->vm.uffd,
					g->vm.state, &options);
	if (!rc)
		served(g, memory);
	return rc;
}

static int adopt(struct guest *g)
{
	const struct vmset *set = g->set;
	struct infill_memory *memory;
	int rc;

	if (set->broken)
		return err_set(-ESTALE, "%s", set->broken);
	if (g->vm.binary)
		return adopt_binary(g);
	rc = handshake_parse(g->vm.hello, g->vm.length, infill_image_bytes(set->image), &memory);
	if (rc)
		return rc < 0 ? rc : err_set(-EPROTO, "handshake: names no region");
	if (vm_is_userfaultfd(g->vm.uffd))
		rc = adopt_memory(g, memory);
	else
		rc = err_set(-EBADF, "handshake: the file descriptor is not a userfaultfd");
	infill_memory_free(memory);
	return rc;
}

/*
 * The VM is not served, or not any more.  Who was never served may be anything
 * that can connect, and is not killed for a wrong message.
 */
static void fail(struct guest *g, const char *why)
{
	const struct server *server = g->set->server;
	struct vm *vm = &g->vm;

	vm->failed = strdup(why);
	server_log(server, LOG_ERR, "VM %llu (pid %d): %s: %s", (unsigned long long)vm->id,
		   (int)vm->pid, vm->accepted ? "failed" : "refused", why);
	vm_tell(vm->sock, vm->binary, why);
	if (!vm->accepted) {
		if (vm->sock >= 0)
			shutdown(vm->sock, SHUT_RDWR);
		fd_close(&vm->sock);
	} else if (server->options.on_error == INFILL_ON_ERROR_KILL) {
		int rc = vm_kill(vm);

		server_log(server, LOG_ERR, "VM %llu (pid %d): %s", (unsigned long long)vm->id,
			   (int)vm->pid, rc ? "cannot be killed: its vCPUs wait" : "killed");
	}
	if (vm_is_userfaultfd(vm->uffd))
		g->set->report.failed(g->set->report.arg, vm->id, why);
	else
		g->finished = true;
}

static void append(struct vmset *set, struct guest *g)
{
	struct guest **at = &set->first;

	while (*at)
		at = &(*at)->next;
	*at = g;
	set->count++;
}

void vmset_take(struct vmset *set, struct vm *vm)
{
	struct guest *g = calloc(1, sizeof(*g));

	if (!g)
		abort(); /* the next worker may have more memory; its VMs have to be served */
	g->vm = *vm;
	g->set = set;
	pthread_mutex_init(&g->lock, NULL);
	*vm = VM_NONE;
	append(set, g);
	if (g->vm.failed)
		return;
	if (adopt(g)) {
		fail(g, err_text());
		return;
	}
	g->vm.accepted = true;
	set->report.accepted(set->report.arg, g->vm.id);
}

/* ---- ends --------------------------------------------------------------------------- */

static void log_end(const struct guest *g)
{
	struct infill_counters c = { .size = sizeof(c) };

	if (!g->session || infill_session_counters(g->session, &c))
		return;
	server_log(g->set->server, LOG_INFO, "VM %llu (pid %d) ended: %llu of %llu pages installed, "
		   "%llu faults, p99 %llu us, stalled %llu ms", (unsigned long long)g->vm.id,
		   (int)g->vm.pid, (unsigned long long)c.installs, (unsigned long long)c.pages,
		   (unsigned long long)c.faults, (unsigned long long)(c.latency_p99_ns / 1000),
		   (unsigned long long)(c.stall_ns / 1000000));
}

/* Forget G, which is not in the list any more. */
static void end(struct vmset *set, struct guest *g)
{
	uint64_t id = g->vm.id;
	unsigned given = g->vm.count;

	log_end(g);
	if (g->session) {
		json_array_append_new(set->ended, control_describe(g, true));
		if (json_array_size(set->ended) > ENDED_KEPT)
			json_array_remove(set->ended, 0);
	}
	set->count--;
	guest_free(g);
	set->report.ended(set->report.arg, id, given);
}

static bool process_is_gone(const struct vm *vm)
{
	struct pollfd process = { .fd = vm->pidfd, .events = POLLIN };

	return (vm->pidfd >= 0 && poll(&process, 1, 0) == 1) || vm_is_gone(vm);
}

/* Once nothing is missing the kernel needs no pager, unless a page that is
 * given back would show the cache's content again. */
static bool is_independent(const struct guest *g)
{
	return g->session && !g->vm.shared && !g->vm.failed && session_independent(g->session) &&
	       (g->resident || !infill_session_wait(g->session, INFILL_WAIT_RESIDENT, 0));
}

static void note(struct guest *g, enum infill_event_kind kind, char *text, size_t size)
{
	pthread_mutex_lock(&g->lock);
	snprintf(text, size, "%s", g->note[kind]);
	pthread_mutex_unlock(&g->lock);
}

static void look_at_events(struct guest *g)
{
	static const enum infill_event_kind warnings[] = {
		INFILL_EVENT_TRACE_IGNORED, INFILL_EVENT_TRACE_FAILED, INFILL_EVENT_POISON,
	};
	/* Acquire: see on_event(). */
	uint32_t events = atomic_exchange_explicit(&g->events, 0, memory_order_acquire);
	char text[256];

	for (size_t i = 0; events && i < sizeof(warnings) / sizeof(*warnings); i++) {
		if (!(events & 1u << warnings[i]))
			continue;
		note(g, warnings[i], text, sizeof(text));
		server_log(g->set->server, LOG_WARNING, "VM %llu (pid %d): %s",
			   (unsigned long long)g->vm.id, (int)g->vm.pid, text);
	}
	/* Who waits for it is told after this: a drain that asked too early would ask no more. */
	if (events & 1u << INFILL_EVENT_RESIDENT)
		g->resident = true;
	if (events & 1u << INFILL_EVENT_ENDED) {
		g->finished = true;
	} else if (events & 1u << INFILL_EVENT_ERROR && !g->vm.failed) {
		note(g, INFILL_EVENT_ERROR, text, sizeof(text));
		fail(g, text);
	}
}

void vmset_sweep(struct vmset *set)
{
	struct guest **at = &set->first;

	while (*at) {
		struct guest *g = *at;

		look_at_events(g);
		if (!g->finished && (g->vm.failed || g->vm.pidfd < 0))
			g->finished = process_is_gone(&g->vm);
		if (!g->finished && set->draining)
			g->finished = is_independent(g);
		if (!g->finished) {
			at = &g->next;
			continue;
		}
		*at = g->next;
		end(set, g);
	}
}

static void on_wake(void *arg, int fd, short revents)
{
	uint64_t count;

	(void)arg;
	(void)revents;
	(void)!read(fd, &count, sizeof(count));
}

static void on_process(void *arg, int fd, short revents)
{
	(void)arg; /* vmset_sweep() looks itself */
	(void)fd;
	(void)revents;
}

void vmset_poll(struct vmset *set, struct loop *loop)
{
	loop_add(loop, set->wake, POLLIN, on_wake, set);
	for (struct guest *g = set->first; g; g = g->next) {
		if (!g->vm.failed && g->vm.pidfd >= 0)
			continue;
		if (g->vm.pidfd >= 0)
			loop_add(loop, g->vm.pidfd, POLLIN, on_process, g);
		loop_until(loop, loop_now() + PROBE_MS * LOOP_MS);
	}
	for (struct guest *g = set->first; g; g = g->next)
		if (g->finished)
			loop_until(loop, 0);
}

void vmset_drain(struct vmset *set)
{
	unsigned need = 0;

	if (set->draining)
		return;
	set->draining = true;
	for (struct guest *g = set->first; g; g = g->next)
		need += !is_independent(g);
	if (need)
		server_log(set->server, LOG_NOTICE, "%u VM%s still need%s pages: serving until they "
			   "have all or end", need, need == 1 ? "" : "s", need == 1 ? "s" : "");
}

void vmset_stop_now(struct vmset *set)
{
	bool kill = set->server->options.on_error == INFILL_ON_ERROR_KILL;
	uint64_t until = loop_now() + KILL_WAIT_MS * LOOP_MS;

	for (struct guest *g = set->first; g; g = g->next) {
		g->finished = true;
		if (is_independent(g))
			continue;
		server_log(set->server, LOG_ERR, "VM %llu (pid %d): stopped before it had all its "
			   "pages%s", (unsigned long long)g->vm.id, (int)g->vm.pid,
			   kill ? ": killed" : "");
		vm_tell(g->vm.sock, g->vm.binary, "the pager was stopped before this VM had all its pages");
		if (kill)
			vm_kill(&g->vm);
	}
	/* No userfaultfd may be closed before the last vCPU is gone. */
	for (struct guest *g = set->first; kill && g; g = g->next) {
		uint64_t now = loop_now();

		if (now < until && !is_independent(g))
			vm_wait_gone(&g->vm, (int)((until - now) / LOOP_MS));
	}
	vmset_sweep(set);
}
