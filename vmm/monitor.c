/* SPDX-License-Identifier: MIT */
/*
 * monitor.c: the main thread's loop.  Something else to wait for is another fd in
 * wait_for_end().
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control.h"
#include "error.h"
#include "monitor.h"
#include "snapshot.h"
#include "stat.h"
#include "terminal.h"

/* An fd that says when the VMM shall end; threads that are started later let this one hear it. */
static int catch_signals(void)
{
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN); /* a console that nobody reads is no reason to end */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? vmm_error(-errno, "signalfd: %m") : fd;
}

static void tell(struct vm *vm, struct control_request *request)
{
	char *text = stat_text(vm);

	if (text)
		control_answer_text(request, text);
	else
		control_answer(request, "stat: no memory");
	free(text);
}

/* A VM goes on when it could not be saved, and ends when it was: there must not be two. */
static void save(struct vm *vm, struct control_request *request)
{
	vm_pause(vm);
	if (vm_state(vm) != NEXT_RUN) {
		control_answer(request, "snapshot: the VM has ended already");
	} else if (snapshot_write(vm, request->memory, request->state)) {
		control_answer(request, vmm_error_text());
		vm_resume(vm);
	} else {
		control_answer(request, NULL);
		vm_end(vm, NEXT_STOP);
	}
}

static void serve(struct vm *vm, struct control_request *request)
{
	if (request->verb == CONTROL_STAT)
		tell(vm, request);
	else
		save(vm, request);
}

static int wait_for_end(struct vm *vm, int signal_fd, int control_fd)
{
	struct pollfd fds[] = {
		{ .fd = vm->end_fd, .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
		{ .fd = control_fd, .events = POLLIN },
	};
	struct control_request request;

	while (!fds[0].revents) {
		if (poll(fds, 3, -1) < 0)
			continue;
		if (fds[1].revents)
			return vmm_error(-EINTR, "ended by a signal");
		if (fds[2].revents && !fds[0].revents && control_accept(control_fd, &request))
			serve(vm, &request);
	}
	return 0;
}

static int status_of(enum next end)
{
	if (end == NEXT_RESET)
		vmm_error(-ECANCELED, "the guest asked for a reset, which ends it");
	return end == NEXT_POWER_OFF || end == NEXT_STOP ? 0 : 1;
}

int monitor_run(struct vm *vm, const char *control)
{
	int signal_fd = catch_signals();
	int control_fd = signal_fd >= 0 && control ? control_listen(control) : -1;
	int err = signal_fd < 0 ? signal_fd : control && control_fd < 0 ? control_fd : 0;

	if (!err) {
		terminal_set();
		err = vm_start(vm);
	}
	if (!err)
		err = wait_for_end(vm, signal_fd, control_fd);
	terminal_restore();
	control_close(control_fd, control);
	if (signal_fd >= 0)
		close(signal_fd);
	return err ? 1 : status_of(vm_state(vm));
}
