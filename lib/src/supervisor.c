/* SPDX-License-Identifier: MIT */
/*
 * supervisor.c: the process that keeps VMs' files while workers come and go.
 *
 * It holds a list of VMs in the order of arrival, and a flag for each that
 * says whether the worker of the moment has been given it.  A dead worker
 * clears the flags, and giving starts again with the first: there is no queue
 * to be in step with.  The worker is forked, without exec: this process has
 * one thread and no state that a child could get wrong.
 *
 * Nothing here waits for the worker, so one that hangs or is stopped holds up
 * nobody who connects.  Internal; may change freely.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "err.h"
#include "loop.h"
#include "memfd.h"
#include "packet.h"
#include "supervisor.h"
#include "vm.h"
#include "worker.h"

#define QUICK_MS 1000      /* a worker that died within that made no progress */
#define QUICK_FREE 10      /* so many such deaths in a row cost no delay */
#define DELAY_MS 10        /* the first, doubled by every further one */
#define DELAY_MAX_MS 1000
#define DEATHS_MAX 3       /* of workers while they took one VM for the first time */
#define DEATHS_AGAIN_MAX 20 /* ... or took it again, which is a guest that lives */
#define FULL_MS 10         /* until fds in flight are tried again */
#define STOP_NOW_MS 5000   /* the worker has for its last orders */
#define EXIT_MS 30000      /* ... and to end when it has no VM */

struct ward {
	struct vm vm;
	bool given;      /* to the worker of the moment */
	bool taken;      /* ... which said so */
	unsigned deaths; /* of workers in between */
	struct ward *next;
};

struct supervisor {
	struct server *server;
	struct clients clients;
	struct loop loop;
	struct ward *first;
	unsigned served, kept;  /* wards without and with vm.failed */
	uint64_t last_id;
	pid_t worker;           /* 0: none */
	int link, worker_pidfd;
	uint64_t started;       /* when */
	uint64_t start_after;   /* not before */
	unsigned quick;         /* deaths in a row without progress */
	bool ready, ever_ready; /* this worker, any worker */
	bool link_full;
	uint64_t retry_at;
	unsigned stop, stop_sent; /* requests to stop: 0 to 2 */
	uint64_t give_up_at;
	bool finished;
	int result;
	struct packet packet;
};

/* ---- wards ---------------------------------------------------------------------- */

static struct ward *find(struct supervisor *s, uint64_t id)
{
	struct ward *w = s->first;

	while (w && w->vm.id != id)
		w = w->next;
	return w;
}

static void forget(struct supervisor *s, struct ward *w)
{
	struct ward **at = &s->first;

	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	*(w->vm.failed ? &s->kept : &s->served) -= 1;
	vm_close(&w->vm);
	free(w);
}

/* From now on W is only kept. */
static void keep_only(struct supervisor *s, struct ward *w, const char *why)
{
	if (w->vm.failed)
		return;
	w->vm.failed = strdup(why);
	if (!w->vm.failed)
		abort();
	s->served--;
	s->kept++;
	free(w->vm.hello);
	w->vm.hello = NULL;
	w->vm.length = 0;
	vm_close_given(&w->vm);
	if (!w->vm.accepted)
		fd_close(&w->vm.sock);
}

static void refuse(struct supervisor *s, struct ward *w, const char *why)
{
	server_log(s->server, LOG_ERR, "VM %llu (pid %d): %s: %s", (unsigned long long)w->vm.id,
		   (int)w->vm.pid, w->vm.accepted ? "failed" : "refused", why);
	vm_tell(w->vm.sock, w->vm.binary, why);
	if (w->vm.accepted && s->server->options.on_error == INFILL_ON_ERROR_KILL)
		vm_kill(&w->vm);
	keep_only(s, w, why);
	/* Without a userfaultfd nothing has to be kept: its bits stay set. */
	if (w->vm.binary && w->vm.uffd < 0)
		forget(s, w);
}

static void on_vm(void *arg, struct vm *vm)
{
	struct supervisor *s = arg;
	struct ward *w = calloc(1, sizeof(*w)), **at = &s->first;
	char text[128];

	if (!w)
		abort(); /* the worker goes on with the VMs that it has */
	while (*at)
		at = &(*at)->next;
	*at = w;
	w->vm = *vm;
	w->vm.id = ++s->last_id;
	*(vm->failed ? &s->kept : &s->served) += 1;
	w->vm.state = memfd_make("infill-state", 0);
	if (w->vm.failed)
		return;
	if (w->vm.state < 0) {
		refuse(s, w, "the pager has no memory or no file descriptor left");
	} else if (s->served > s->server->options.max_vms) {
		snprintf(text, sizeof(text), "this pager serves %u VMs already, which is its limit "
			 "(max_vms)", s->server->options.max_vms);
		refuse(s, w, text);
	}
}

static void on_control(void *arg, struct client *client)
{
	(void)arg; /* give_all() finds it */
	(void)client;
}

/* ---- giving ---------------------------------------------------------------------- */

/* 0: sent; else the worker takes nothing for now. */
static int give(struct supervisor *s, const void *data, size_t length)
{
	int rc = packet_send(s->link, &s->packet, data, length, MSG_DONTWAIT);

	if (rc == -EAGAIN)
		s->link_full = true;
	else if (rc == -ETOOMANYREFS || rc == -ENOBUFS || rc == -ENOMEM)
		s->retry_at = loop_now() + FULL_MS * LOOP_MS;
	return rc; /* EPIPE: on_worker() is about to be called */
}

static void add_fd(struct packet *p, uint32_t flag, int fd)
{
	if (fd < 0)
		return;
	p->flags |= flag;
	p->fd[p->fds++] = fd;
}

static int give_ward(struct supervisor *s, struct ward *w)
{
	struct packet *p = &s->packet;
	const struct vm *vm = &w->vm;
	const char *data = vm->failed ? vm->failed : vm->hello;

	p->type = PACKET_TAKE;
	p->id = vm->id;
	p->pid = vm->pid;
	p->flags = (vm->shared ? PACKET_SHARED : 0) | (vm->accepted ? PACKET_SERVED : 0) |
		   (vm->failed ? PACKET_HOPELESS : 0) | (vm->binary ? PACKET_BINARY : 0);
	p->fds = 0;
	add_fd(p, PACKET_UFFD, vm->uffd);
	add_fd(p, PACKET_STATE, vm->state);
	add_fd(p, PACKET_SOCK, vm->sock);
	add_fd(p, PACKET_PIDFD, vm->pidfd);
	for (unsigned i = 0; i < vm->count; i++)
		p->fd[p->fds++] = vm->fd[i];
	w->given = !give(s, data, vm->failed ? strlen(data) : vm->length);
	return w->given ? 0 : -1;
}

static int give_request(struct supervisor *s, struct client *c)
{
	struct packet *p = &s->packet;

	p->type = PACKET_CONTROL;
	p->id = c->id;
	p->flags = 0;
	p->fds = 1;
	p->fd[0] = c->sock;
	c->given = !give(s, c->bytes, c->length);
	return c->given ? 0 : -1;
}

static void give_stop(struct supervisor *s)
{
	struct packet *p = &s->packet;

	p->type = s->stop == 1 ? PACKET_STOP : PACKET_STOP_NOW;
	p->flags = p->fds = 0;
	if (!give(s, NULL, 0))
		s->stop_sent = s->stop;
}

/* Give the worker everything that it does not have, oldest first. */
static void give_all(struct supervisor *s)
{
	uint64_t now = loop_now();

	s->link_full = false;
	if (!s->worker || now < s->retry_at)
		return;
	for (struct ward *w = s->first; w; w = w->next)
		if (!w->given && give_ward(s, w))
			return;
	for (unsigned i = 0; i < s->clients.max; i++) {
		struct client *c = &s->clients.client[i];

		if (c->sock >= 0 && c->state == CLIENT_ASKING && !c->given && give_request(s, c))
			return;
	}
	if (s->stop > s->stop_sent)
		give_stop(s);
}

/* ---- what the worker says ----------------------------------------------------------- */

static void ward_ended(struct supervisor *s, struct ward *w)
{
	bool was_vm = w->vm.accepted || w->vm.failed;

	forget(s, w);
	if (was_vm && s->server->options.flags & INFILL_SERVER_ONE_VM && !s->stop)
		s->stop = 1;
}

static void hear_of_ward(struct supervisor *s, const struct packet *p)
{
	struct ward *w = find(s, p->id);

	if (!w)
		return;
	w->taken = true;
	w->deaths = 0;
	if (p->type == PACKET_ACCEPTED)
		w->vm.accepted = true;
	else if (p->type == PACKET_FAILED)
		keep_only(s, w, p->data);
	else
		ward_ended(s, w);
}

static void hear_of_client(struct supervisor *s, const struct packet *p)
{
	struct client *c = clients_asking(&s->clients, p->id);

	if (c && p->type == PACKET_ANSWERING)
		c->answering = true;
	else if (c)
		client_answered(&s->clients, c, p->flags & PACKET_SHARED);
}

static void hear(struct supervisor *s, const struct packet *p)
{
	switch (p->type) {
	case PACKET_READY:
		if (!s->ever_ready)
			server_ready(s->server);
		s->ready = s->ever_ready = true;
		break;
	case PACKET_BROKEN:
		server_log(s->server, LOG_ERR, "the worker cannot start: %s", p->data);
		if (!s->ever_ready) {
			s->result = err_set((int)p->pid, "%s", p->data);
			s->finished = true;
		}
		break;
	case PACKET_ACCEPTED:
	case PACKET_FAILED:
	case PACKET_ENDED:
		hear_of_ward(s, p);
		break;
	case PACKET_ANSWERING:
	case PACKET_ANSWERED:
		hear_of_client(s, p);
		break;
	}
}

static void hear_all(struct supervisor *s)
{
	int rc = -EAGAIN;

	while (s->link >= 0 && (rc = packet_receive(s->link, &s->packet)) == 1)
		hear(s, &s->packet);
	if (rc == 0)
		fd_close(&s->link); /* the worker is dying; its pidfd says when it is dead */
}

static void on_link(void *arg, int fd, short revents)
{
	struct supervisor *s = arg;

	if (fd == s->link && revents & (POLLIN | POLLHUP))
		hear_all(s);
}

/* ---- the worker's life ------------------------------------------------------------- */

/* The child has no use for what it inherits, and must keep no VM's file open by it. */
static void close_inherited(struct supervisor *s)
{
	for (struct ward *w = s->first; w; w = w->next)
		vm_close(&w->vm);
	clients_free(&s->clients);
	fd_close(&s->server->listener);
	fd_close(&s->link);
	s->server->socket_ino = 0;
}

static void start_worker(struct supervisor *s)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		goto failed;
	s->worker = fork();
	if (s->worker == 0) {
		close(pair[0]);
		close_inherited(s);
		worker_run(s->server, pair[1]);
	}
	s->link = pair[0];
	close(pair[1]);
	if (s->worker < 0)
		goto failed;
	s->worker_pidfd = (int)syscall(SYS_pidfd_open, s->worker, 0);
	if (s->worker_pidfd < 0) {
		server_log(s->server, LOG_ERR, "cannot watch the worker: %m: will start another");
		kill(s->worker, SIGKILL);
		waitpid(s->worker, NULL, 0);
		goto failed;
	}
	s->started = loop_now();
	s->ready = false;
	s->stop_sent = 0;
	return;
failed:
	server_log(s->server, LOG_ERR, "cannot start a worker: %m: will try again");
	s->worker = 0;
	fd_close(&s->link);
	s->start_after = loop_now() + DELAY_MAX_MS * LOOP_MS;
}

/* The worker took VMs in their order, so the first that it did not report is the one. */
static void blame(struct supervisor *s, int status)
{
	struct ward *w = s->first;

	while (w && (!w->given || w->taken))
		w = w->next;
	/* SIGKILL is somebody's decision, and no VM's doing. */
	if (!w || !s->ready || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
		return;
	if (++w->deaths >= (w->vm.accepted ? DEATHS_AGAIN_MAX : DEATHS_MAX) && !w->vm.failed)
		refuse(s, w, "workers died each time they took this VM");
}

static bool made_progress(const struct supervisor *s, int status)
{
	bool all = s->ready;

	for (const struct ward *w = s->first; w; w = w->next)
		all = all && (w->taken || w->vm.failed);
	return loop_now() - s->started >= QUICK_MS * LOOP_MS ||
	       (all && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void plan_restart(struct supervisor *s, int status)
{
	uint64_t delay = 0;

	if (made_progress(s, status))
		s->quick = 0;
	else if (++s->quick > QUICK_FREE)
		delay = s->quick - QUICK_FREE > 7 ? DELAY_MAX_MS
						  : DELAY_MS << (s->quick - QUICK_FREE - 1);
	s->start_after = loop_now() + delay * LOOP_MS;
	if (!s->ever_ready && !s->first && s->quick > 2 * QUICK_FREE) {
		s->result = err_set(-ECHILD, "serve: no worker lives long enough to be set up");
		s->finished = true;
		return;
	}
	if (delay)
		server_log(s->server, LOG_ERR, "%u workers died within a second each: the next one "
			   "starts in %llu ms", s->quick, (unsigned long long)delay);
}

static void log_death(const struct supervisor *s, int status)
{
	const char *how = WIFSIGNALED(status) ? "was killed by signal" : "exited with status";
	int what = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);

	server_log(s->server, LOG_WARNING, "worker %d %s %d: starting another, which goes on with "
		   "%u VM%s", (int)s->worker, how, what, s->served, s->served == 1 ? "" : "s");
}

static void take_back(struct supervisor *s)
{
	for (struct ward *w = s->first; w; w = w->next)
		w->given = w->taken = false;
	for (unsigned i = 0; i < s->clients.max; i++) {
		struct client *c = &s->clients.client[i];

		if (c->sock < 0 || c->state != CLIENT_ASKING)
			continue;
		c->given = false;
		if (c->answering) /* half an answer: it asks again */
			client_close(c);
	}
}

/* The worker is dead with all its threads: none of them touches a page any more. */
static void bury_worker(struct supervisor *s)
{
	int status = 0;

	hear_all(s);
	while (waitpid(s->worker, &status, 0) < 0 && errno == EINTR)
		;
	fd_close(&s->link);
	fd_close(&s->worker_pidfd);
	if (!s->finished) {
		log_death(s, status);
		s->server->restarts++;
		blame(s, status);
		plan_restart(s, status);
	}
	take_back(s);
	s->worker = 0;
}

static void on_worker(void *arg, int fd, short revents)
{
	struct supervisor *s = arg;

	(void)revents;
	if (s->worker && fd == s->worker_pidfd)
		bury_worker(s);
}

/* ---- the end ------------------------------------------------------------------------- */

static void on_stop(void *arg, int fd, short revents)
{
	struct supervisor *s = arg;

	(void)fd;
	(void)revents;
	s->stop = server_stop_request(s->server, s->stop);
}

/* What became due by s->stop. */
static void stopping(struct supervisor *s)
{
	if (s->server->listener >= 0) {
		server_log(s->server, LOG_NOTICE, "stopping");
		server_unlisten(s->server);
		clients_stop(&s->clients);
	}
	if (s->stop == 2 && !s->give_up_at) {
		s->give_up_at = loop_now() + STOP_NOW_MS * LOOP_MS;
		s->start_after = 0;
	}
	if (!s->first)
		s->finished = true;
}

/* The worker did not obey the last order. */
static void give_up(struct supervisor *s)
{
	bool kill_vms = s->server->options.on_error == INFILL_ON_ERROR_KILL;

	for (struct ward *w = s->first; w; w = w->next) {
		vm_tell(w->vm.sock, w->vm.binary, "the pager was stopped before this VM had all its pages");
		if (kill_vms)
			vm_kill(&w->vm);
	}
	for (struct ward *w = s->first; kill_vms && w; w = w->next)
		vm_wait_gone(&w->vm, 100);
	if (s->worker)
		kill(s->worker, SIGKILL);
	s->finished = true;
}

static void end_worker(struct supervisor *s)
{
	struct vm worker = VM_NONE;

	if (!s->worker)
		return;
	hear_all(s);
	fd_close(&s->link); /* it ends when it has no VM and no supervisor */
	worker.pidfd = s->worker_pidfd;
	vm_wait_gone(&worker, EXIT_MS);
	kill(s->worker, SIGKILL); /* not reaped yet: the pid is still its */
	bury_worker(s);
}

/* ---- turns ---------------------------------------------------------------------------- */

static void turn(struct supervisor *s)
{
	const struct server *server = s->server;

	if (!s->worker && loop_now() >= s->start_after)
		start_worker(s);
	loop_begin(&s->loop);
	/* What is only kept is bounded, too: who connects then waits, and loses nothing. */
	clients_poll(&s->clients, &s->loop, s->kept < server->options.max_vms);
	give_all(s);
	if (s->worker) {
		loop_add(&s->loop, s->link, POLLIN | (s->link_full ? POLLOUT : 0), on_link, s);
		loop_add(&s->loop, s->worker_pidfd, POLLIN, on_worker, s);
	} else {
		loop_until(&s->loop, s->start_after);
	}
	if (s->retry_at > loop_now())
		loop_until(&s->loop, s->retry_at);
	if (server->options.stop_fd > 0 && s->stop < 2)
		loop_add(&s->loop, server->options.stop_fd, POLLIN, on_stop, s);
	if (s->give_up_at)
		loop_until(&s->loop, s->give_up_at);
	loop_turn(&s->loop);
	if (s->stop)
		stopping(s);
	if (s->give_up_at && loop_now() >= s->give_up_at && !s->finished)
		give_up(s);
}

int supervisor_run(struct server *server)
{
	struct supervisor *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(-ENOMEM, "serve: %m");
	s->server = server;
	s->link = s->worker_pidfd = -1;
	server->supervisor = getpid();
	rc = clients_init(&s->clients, server);
	if (!rc && loop_init(&s->loop, worker_files(server)))
		rc = err_set(-ENOMEM, "serve: %m");
	s->clients.on_vm = on_vm;
	s->clients.on_control = on_control;
	s->clients.arg = s;
	while (!rc && !s->finished)
		turn(s);
	end_worker(s);
	while (s->first)
		forget(s, s->first);
	clients_free(&s->clients);
	loop_free(&s->loop);
	rc = rc ? rc : s->result;
	free(s);
	return rc;
}
