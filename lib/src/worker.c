/* SPDX-License-Identifier: MIT */
/*
 * worker.c: the process that serves: a set of VMs behind a socket pair.
 *
 * It may die at any instruction: all that must outlive it is with the
 * supervisor already before the worker hears of it, or in a session's state
 * file.  Reports to the supervisor are therefore only hints about what it may
 * let go of, and a report that is lost costs nothing but a second try.
 * Internal; may change freely.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control.h"
#include "err.h"
#include "loop.h"
#include "packet.h"
#include "vmset.h"
#include "worker.h"

struct worker {
	const struct server *server;
	int link;    /* -1: the supervisor is gone */
	int signals; /* signalfd */
	struct loop loop;
	struct vmset set;
	struct control control;
	struct packet packet; /* received; large */
	struct packet report; /* sent */
};

size_t worker_files(const struct server *server)
{
	return 64 + 3 * (size_t)server->options.max_vms + 2 * (size_t)server->options.max_clients;
}

/* ---- reports ---------------------------------------------------------------------- */

/* The supervisor always reads soon; a failure shows as the link's end. */
static void report(struct worker *w, enum packet_type type, uint64_t id, uint32_t flags,
		   const char *text)
{
	w->report.type = type;
	w->report.id = id;
	w->report.flags = flags;
	if (w->link >= 0)
		packet_send(w->link, &w->report, text, text ? strlen(text) : 0, 0);
}

static void report_accepted(void *arg, uint64_t id)
{
	report(arg, PACKET_ACCEPTED, id, 0, NULL);
}

static void report_failed(void *arg, uint64_t id, const char *why)
{
	report(arg, PACKET_FAILED, id, 0, why);
}

static void report_ended(void *arg, uint64_t id, unsigned given)
{
	(void)given;
	report(arg, PACKET_ENDED, id, 0, NULL);
}

static void report_answering(void *arg, uint64_t id)
{
	report(arg, PACKET_ANSWERING, id, 0, NULL);
}

static void report_answered(void *arg, uint64_t id, bool shared)
{
	report(arg, PACKET_ANSWERED, id, shared ? PACKET_SHARED : 0, NULL);
}

/* ---- orders ----------------------------------------------------------------------- */

/* The text of a packet, without its NUL. */
static char *copy_text(const struct packet *p)
{
	char *text = malloc(p->length + 1);

	if (!text)
		abort(); /* as in vmset_take() */
	memcpy(text, p->data, p->length + 1);
	return text;
}

static void take_fds(struct vm *vm, const int *fd, unsigned count)
{
	if (!count)
		return;
	vm->fd = malloc(count * sizeof(int));
	if (!vm->fd)
		abort(); /* as in vmset_take() */
	memcpy(vm->fd, fd, count * sizeof(int));
	vm->count = count;
}

static void take(struct worker *w, const struct packet *p)
{
	struct vm vm = VM_NONE;
	unsigned next = 0;

	vm.id = p->id;
	vm.pid = (pid_t)p->pid;
	if (p->flags & PACKET_UFFD)
		vm.uffd = p->fd[next++];
	if (p->flags & PACKET_STATE)
		vm.state = p->fd[next++];
	if (p->flags & PACKET_SOCK)
		vm.sock = p->fd[next++];
	if (p->flags & PACKET_PIDFD)
		vm.pidfd = p->fd[next++];
	take_fds(&vm, p->fd + next, p->fds - next);
	vm.binary = p->flags & PACKET_BINARY;
	vm.shared = p->flags & PACKET_SHARED;
	vm.accepted = p->flags & PACKET_SERVED;
	if (p->flags & PACKET_HOPELESS) {
		vm.failed = copy_text(p);
	} else {
		vm.hello = copy_text(p);
		vm.length = p->length;
	}
	vmset_take(&w->set, &vm);
}

static void obey(struct worker *w, const struct packet *p)
{
	switch (p->type) {
	case PACKET_TAKE:
		take(w, p);
		break;
	case PACKET_CONTROL:
		control_take(&w->control, p->id, p->fd[0], p->data, p->length);
		break;
	case PACKET_STOP:
		vmset_drain(&w->set);
		break;
	case PACKET_STOP_NOW:
		vmset_stop_now(&w->set);
		break;
	}
}

static void on_link(void *arg, int fd, short revents)
{
	struct worker *w = arg;
	int rc = packet_receive(fd, &w->packet);

	(void)revents;
	if (rc == 1)
		obey(w, &w->packet);
	if (rc == -EBADMSG)
		_exit(1); /* files were lost: a new worker gets them all */
	if (rc)
		return;
	fd_close(&w->link);
	if (w->set.count)
		server_log(w->server, LOG_ERR, "the supervisor is gone: serving its VMs to their end");
	vmset_drain(&w->set);
}

/* Orders come from the supervisor; a signal is only for a worker that has none. */
static void on_signal(void *arg, int fd, short revents)
{
	struct worker *w = arg;
	struct signalfd_siginfo info;

	(void)revents;
	if (read(fd, &info, sizeof(info)) == sizeof(info) && w->link < 0 && info.ssi_signo == SIGTERM)
		vmset_stop_now(&w->set);
}

/* ---- the process ------------------------------------------------------------------- */

/*
 * What the caller of infill_server_run() does about signals is not for this
 * process, and a terminal's interrupt reaches it too: it must go on.
 */
static int take_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int set_up(struct worker *w)
{
	const struct vmset_report reports = { .accepted = report_accepted, .failed = report_failed,
					      .ended = report_ended, .arg = w };
	int rc;

	prctl(PR_SET_NAME, "infill-worker");
	w->signals = take_signals();
	if (w->signals < 0)
		return err_set(-errno, "worker: signalfd: %m");
	rc = loop_init(&w->loop, worker_files(w->server));
	if (rc)
		return err_set(rc, "worker: %m");
	w->control = (struct control){ .set = &w->set, .answering = report_answering,
				       .answered = report_answered, .arg = w };
	return vmset_init(&w->set, w->server, &reports);
}

static void serve(struct worker *w)
{
	while (w->link >= 0 || w->set.count) {
		loop_begin(&w->loop);
		loop_add(&w->loop, w->signals, POLLIN, on_signal, w);
		if (w->link >= 0)
			loop_add(&w->loop, w->link, POLLIN, on_link, w);
		control_poll(&w->control, &w->loop);
		vmset_poll(&w->set, &w->loop);
		loop_turn(&w->loop);
		vmset_sweep(&w->set);
	}
}

_Noreturn void worker_run(const struct server *server, int link)
{
	static struct worker w; /* one for each process, and large */
	int rc;

	w.server = server;
	w.link = link;
	rc = set_up(&w);
	if (rc) {
		w.report.pid = rc;
		report(&w, PACKET_BROKEN, 0, 0, err_text());
		_exit(1);
	}
	report(&w, PACKET_READY, 0, 0, NULL);
	serve(&w);
	control_free(&w.control);
	vmset_free(&w.set);
	/* Not exit(3): what the caller has registered there is the caller's. */
	_exit(0);
}
