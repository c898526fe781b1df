/* SPDX-License-Identifier: MIT */
/*
 * fdstore.c: the daemon without a supervisor.
 *
 * A VM's files go to the service manager in one datagram with one name,
 * "infill.ID": all of them or none are kept.  What each file is can be seen
 * from the file itself.  A barrier makes sure that the manager has them before
 * the session begins.  What a VM with KVM Userfault sent beside (wire.h) has an
 * order that matters, so each of these has a name of its own, "infill.ID.NUMBER",
 * and is sent first.  When this process died the manager starts it again and
 * passes the files back.  "infill.cache" and "infill.socket" are the cache's
 * two memfds and the listening socket.
 *
 * Names and memfd names are an interface between versions of infill: an update
 * of the daemon takes over the VMs of the earlier one.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "control.h"
#include "err.h"
#include "fdstore.h"
#include "loop.h"
#include "memfd.h"
#include "systemd.h"
#include "vmset.h"
#include "worker.h"

#define BARRIER_US 5000000
#define NAME_CARD "infill-handshake" /* memfd that holds the JSON */
#define NAME_STATE "infill-state"

struct store {
	struct server *server;
	struct clients clients;
	struct vmset set;
	struct control control;
	struct loop loop;
	uint64_t last_id;
	unsigned stop, done;
	bool ended_one;
};

/* ---- what was passed to this process ------------------------------------------------- */

/* Read once: sd_listen_fds_with_names() takes the names out of the environment. */
static struct {
	bool read;
	int count;
	char **name; /* of fd SD_LISTEN_FDS_START + i; NULL: taken */
} passed;

static void read_passed(void)
{
	if (passed.read)
		return;
	passed.read = true;
	passed.count = sd_listen_fds_with_names(1, &passed.name);
	if (passed.count < 0 || !passed.name)
		passed.count = 0;
}

/* The next fd with NAME, which is the caller's; -1: no more. */
static int take_passed(const char *name)
{
	read_passed();
	for (int i = 0; i < passed.count; i++) {
		if (!passed.name[i] || strcmp(passed.name[i], name))
			continue;
		free(passed.name[i]);
		passed.name[i] = NULL;
		return SD_LISTEN_FDS_START + i;
	}
	return -1;
}

/*
 * What nobody took is of no name that is known here, or a part of a VM that
 * this process's predecessor died over: a VM of that number may come again.
 */
static void drop(int i)
{
	close(SD_LISTEN_FDS_START + i);
	sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", passed.name[i]);
}

static void free_passed(void)
{
	for (int i = 0; i < passed.count; i++) {
		if (passed.name[i])
			drop(i);
		free(passed.name[i]);
	}
	free(passed.name);
	passed.name = NULL;
	passed.count = 0;
}

int fdstore_check(void)
{
	if (getenv("NOTIFY_SOCKET"))
		return 0;
	return err_set(-ENOTCONN, "NOTIFY_SOCKET: is not set: fds can be stored only for a service of "
		       "Type=notify with FileDescriptorStoreMax= (at least 5 for each VM)");
}

int fdstore_listener(void)
{
	int fd = take_passed("infill.socket");

	/* The manager's may wait in accept(2). */
	if (fd >= 0 && (sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) <= 0 ||
			fcntl(fd, F_SETFL, O_NONBLOCK)))
		fd_close(&fd);
	return fd;
}

/* ---- keeping ------------------------------------------------------------------------- */

static int send_fds(const char *name, const int *fds, unsigned count)
{
	char text[128];

	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return sd_pid_notify_with_fds(0, 0, text, fds, count);
}

static int push(const char *name, const int *fds, unsigned count)
{
	int rc = send_fds(name, fds, count);

	if (rc > 0)
		rc = sd_notify_barrier(0, BARRIER_US);
	return rc < 0 ? rc : 0;
}

bool fdstore_cache(struct server *server)
{
	int a = take_passed("infill.cache"), b = take_passed("infill.cache");
	struct stat st;

	if (b < 0) {
		fd_close(&a);
		return false;
	}
	/* The bits are fewer than the bytes; cache_adopt() verifies both sizes. */
	if (!fstat(a, &st) && (uint64_t)st.st_size == server->identity.bytes) {
		server->cache_fd = a;
		server->cache_bits_fd = b;
	} else {
		server->cache_fd = b;
		server->cache_bits_fd = a;
	}
	return true;
}

void fdstore_keep_cache(const struct server *server)
{
	const int fds[] = { server->cache_fd, server->cache_bits_fd };
	int rc = push("infill.cache", fds, 2);

	if (rc)
		server_log(server, LOG_ERR, "the service manager does not keep the cache: %s",
			   strerror(-rc));
}

static int make_card(const struct vm *vm)
{
	int fd = memfd_make(NAME_CARD, 0);

	if (fd >= 0 && pwrite(fd, vm->hello, vm->length, 0) != (ssize_t)vm->length)
		fd_close(&fd);
	return fd;
}

static void push_vm(struct store *s, const struct vm *vm)
{
	int fds[5] = { vm->state }, card = make_card(vm), rc = 0;
	unsigned count = 1;
	char name[48];

	for (unsigned i = 0; i < vm->count && rc >= 0; i++) {
		snprintf(name, sizeof(name), "infill.%" PRIu64 ".%u", vm->id, i);
		rc = send_fds(name, &vm->fd[i], 1);
	}
	if (vm->uffd >= 0)
		fds[count++] = vm->uffd;
	if (vm->sock >= 0)
		fds[count++] = vm->sock;
	if (vm->pidfd >= 0)
		fds[count++] = vm->pidfd;
	if (card >= 0)
		fds[count++] = card;
	snprintf(name, sizeof(name), "infill.%" PRIu64, vm->id);
	rc = rc < 0 ? rc : push(name, fds, count);
	if (rc)
		server_log(s->server, LOG_ERR, "VM %" PRIu64 " (pid %d): the service manager keeps no "
			   "fds for it: %s: it is served, but not beyond this process's death", vm->id,
			   (int)vm->pid, strerror(-rc));
	fd_close(&card);
}

/* GIVEN: how many files have a number. */
static void remove_vm(uint64_t id, unsigned given)
{
	for (unsigned i = 0; i < given; i++)
		sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=infill.%" PRIu64 ".%u", id, i);
	sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=infill.%" PRIu64, id);
}

/* ---- taking back --------------------------------------------------------------------- */

static bool link_has(int fd, const char *what)
{
	char link[64], target[128];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = 0;
	return strstr(target, what);
}

static void read_card(struct vm *vm, int fd)
{
	struct stat st;

	if (vm->hello || fstat(fd, &st) || st.st_size > HANDSHAKE_MAX)
		return;
	vm->hello = malloc((size_t)st.st_size + 1);
	if (!vm->hello)
		return;
	vm->length = (size_t)st.st_size;
	if (pread(fd, vm->hello, vm->length, 0) != st.st_size)
		vm->length = 0;
	vm->binary = vm->length && (uint8_t)vm->hello[0] == WIRE_FIRST;
}

/* The files that have a number. */
static void take_back_given(struct vm *vm)
{
	char name[48];
	int fd;

	vm->fd = calloc(WIRE_FDS_MAX, sizeof(int));
	if (!vm->fd)
		abort(); /* as in vmset_take() */
	for (; vm->count < WIRE_FDS_MAX; vm->fd[vm->count++] = fd) {
		snprintf(name, sizeof(name), "infill.%" PRIu64 ".%u", vm->id, vm->count);
		fd = take_passed(name);
		if (fd < 0)
			break;
	}
}

/* Put FD where it belongs in VM. */
static void sort_fd(struct vm *vm, int fd)
{
	struct stat st;
	int *place = NULL;

	if (link_has(fd, "[userfaultfd]"))
		place = &vm->uffd;
	else if (link_has(fd, "pidfd"))
		place = &vm->pidfd;
	else if (link_has(fd, NAME_STATE))
		place = &vm->state;
	else if (link_has(fd, NAME_CARD))
		read_card(vm, fd);
	else if (!fstat(fd, &st) && S_ISSOCK(st.st_mode))
		place = &vm->sock;
	if (!place || *place >= 0) {
		close(fd);
		return;
	}
	*place = fd;
}

static void take_back_vm(struct store *s, uint64_t id)
{
	struct vm vm = VM_NONE;
	struct stat st;
	char name[32];
	int fd;

	vm.id = id;
	snprintf(name, sizeof(name), "infill.%" PRIu64, id);
	while ((fd = take_passed(name)) >= 0)
		sort_fd(&vm, fd);
	take_back_given(&vm);
	if (vm.uffd < 0 && !vm.binary) {
		unsigned given = vm.count;

		vm_close(&vm);
		remove_vm(id, given);
		return;
	}
	if (vm.sock >= 0) {
		int pidfd = vm.pidfd, ignored;

		vm.pidfd = -1;
		vm_identify(&vm);
		ignored = vm.pidfd; /* the stored one is surely of the right process */
		if (pidfd >= 0) {
			fd_close(&ignored);
			vm.pidfd = pidfd;
		}
	}
	vm.accepted = vm.state >= 0 && !fstat(vm.state, &st) && st.st_size;
	if (vm.state < 0 || !vm.hello)
		vm.failed = strdup("the service manager has lost its files");
	vmset_take(&s->set, &vm);
}

/* The lowest id of a VM that was passed and not yet taken; 0: none. */
static uint64_t next_passed(void)
{
	uint64_t lowest = 0;

	for (int i = 0; i < passed.count; i++) {
		unsigned long long id;
		char end;

		if (passed.name[i] && sscanf(passed.name[i], "infill.%llu%c", &id, &end) == 1 &&
		    id && (!lowest || id < lowest))
			lowest = id;
	}
	return lowest;
}

static void take_back_all(struct store *s)
{
	uint64_t id;

	while ((id = next_passed())) {
		s->last_id = id;
		s->server->restarts = 1; /* of how many is not known */
		take_back_vm(s, id);
	}
	free_passed();
}

/* ---- clients ------------------------------------------------------------------------- */

static unsigned count_kept(const struct store *s)
{
	unsigned kept = 0;

	for (const struct guest *g = s->set.first; g; g = g->next)
		kept += g->vm.failed != NULL;
	return kept;
}

static void refuse(struct vm *vm, const char *why)
{
	vm_tell(vm->sock, vm->binary, why);
	fd_close(&vm->sock);
	vm->failed = strdup(why);
}

static void on_vm(void *arg, struct vm *vm)
{
	struct store *s = arg;

	vm->id = ++s->last_id;
	vm->state = memfd_make(NAME_STATE, 0);
	if (!vm->failed && vm->state < 0)
		refuse(vm, "the pager has no memory or no file descriptor left");
	if (!vm->failed && s->set.count - count_kept(s) >= s->server->options.max_vms)
		refuse(vm, "this pager serves as many VMs as its limit (max_vms) allows");
	if (vm->failed && vm->binary && vm->uffd < 0) {
		vm_close(vm); /* nothing has to be kept: its bits stay set */
		return;
	}
	if (vm->state >= 0)
		push_vm(s, vm);
	vmset_take(&s->set, vm);
}

static void on_control(void *arg, struct client *client)
{
	struct store *s = arg;
	int sock = fcntl(client->sock, F_DUPFD_CLOEXEC, 0);

	if (sock < 0)
		client_close(client);
	else
		control_take(&s->control, client->id, sock, client->bytes, client->length);
}

/* ---- reports -------------------------------------------------------------------------- */

static void report_accepted(void *arg, uint64_t id)
{
	(void)arg;
	(void)id;
}

static void report_failed(void *arg, uint64_t id, const char *why)
{
	(void)arg;
	(void)id;
	(void)why;
}

static void report_ended(void *arg, uint64_t id, unsigned given)
{
	struct store *s = arg;

	s->ended_one = true;
	remove_vm(id, given);
}

static void report_answering(void *arg, uint64_t id)
{
	(void)arg;
	(void)id;
}

static void report_answered(void *arg, uint64_t id, bool shared)
{
	struct store *s = arg;
	struct client *c = clients_asking(&s->clients, id);

	if (c)
		client_answered(&s->clients, c, shared);
}

/* ---- turns ---------------------------------------------------------------------------- */

static void on_stop(void *arg, int fd, short revents)
{
	struct store *s = arg;

	(void)fd;
	(void)revents;
	s->stop = server_stop_request(s->server, s->stop);
}

static void stopping(struct store *s)
{
	if (s->done == 0) {
		sd_notify(0, "STOPPING=1");
		server_log(s->server, LOG_NOTICE, "stopping");
		server_unlisten(s->server);
		clients_stop(&s->clients);
		vmset_drain(&s->set);
		s->done = 1;
	}
	if (s->stop == 2 && s->done == 1) {
		vmset_stop_now(&s->set);
		s->done = 2;
	}
}

static void turn(struct store *s)
{
	const struct infill_server_options *o = &s->server->options;

	loop_begin(&s->loop);
	clients_poll(&s->clients, &s->loop, count_kept(s) < o->max_vms);
	control_poll(&s->control, &s->loop);
	vmset_poll(&s->set, &s->loop);
	if (o->stop_fd > 0 && s->stop < 2)
		loop_add(&s->loop, o->stop_fd, POLLIN, on_stop, s);
	loop_turn(&s->loop);
	vmset_sweep(&s->set);
	if (s->ended_one && o->flags & INFILL_SERVER_ONE_VM && !s->stop)
		s->stop = 1;
	if (s->stop)
		stopping(s);
}

static int set_up(struct store *s)
{
	const struct vmset_report reports = { .accepted = report_accepted, .failed = report_failed,
					      .ended = report_ended, .arg = s };
	int rc;

	rc = vmset_init(&s->set, s->server, &reports);
	if (!rc)
		rc = clients_init(&s->clients, s->server);
	if (!rc && loop_init(&s->loop, 2 * worker_files(s->server)))
		rc = err_set(-ENOMEM, "serve: %m");
	s->clients.on_vm = on_vm;
	s->clients.on_control = on_control;
	s->clients.arg = s;
	s->control = (struct control){ .set = &s->set, .answering = report_answering,
				       .answered = report_answered, .arg = s };
	return rc;
}

int fdstore_run(struct server *server)
{
	struct store *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(-ENOMEM, "serve: %m");
	s->server = server;
	rc = set_up(s);
	if (!rc) {
		take_back_all(s);
		sd_notify(0, "READY=1");
		server_ready(server);
	}
	while (!rc && !(s->stop && s->done && !s->set.count))
		turn(s);
	control_free(&s->control);
	vmset_free(&s->set);
	clients_free(&s->clients);
	loop_free(&s->loop);
	free(s);
	return rc;
}
