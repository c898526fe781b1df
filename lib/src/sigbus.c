/* SPDX-License-Identifier: MIT */
/*
 * sigbus.c: turn SIGBUS in a mapped image into an error.
 *
 * The handler belongs to the whole process, so it only acts when this thread
 * is inside sigbus_guard() and the address is in the range that was named
 * there; everything else goes to the handler that was there before.
 * Internal; infill_sigbus_install() is ABI.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <ucontext.h>

#include "err.h"
#include "infill.h"
#include "sigbus.h"

struct guard {
	uintptr_t begin, end;
	sigjmp_buf leave;
};

/* initial-exec: a signal handler must not allocate on a thread's first access. */
static _Thread_local struct guard *volatile guard __attribute__((tls_model("initial-exec")));
static struct sigaction before;
static atomic_bool installed;

/* Sent by somebody, or a report of a memory error elsewhere: no access will repeat it. */
static bool asynchronous(const siginfo_t *info)
{
	return info->si_code <= 0 || info->si_code == BUS_MCEERR_AO;
}

static void pass_on(int number, siginfo_t *info, void *context)
{
	if (before.sa_flags & SA_SIGINFO) {
		before.sa_sigaction(number, info, context);
		return;
	}
	if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
		before.sa_handler(number);
		return;
	}
	if (before.sa_handler == SIG_IGN && asynchronous(info))
		return;
	/* The access is repeated on return, and does what it does without infill. */
	signal(SIGBUS, SIG_DFL);
	if (asynchronous(info))
		raise(SIGBUS);
}

static void handler(int number, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr;
	struct guard *here = guard;

	if (here && !asynchronous(info) && at >= here->begin && at < here->end) {
		/* The jump restores no mask; a runtime around this handler may have blocked all. */
		pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
		siglongjmp(here->leave, 1);
	}
	pass_on(number, info, context);
}

bool sigbus_installed(void)
{
	return atomic_load(&installed);
}

int infill_sigbus_install(void)
{
	/* NODEFER: the handler before may itself jump away. */
	struct sigaction action = {
		.sa_sigaction = handler,
		.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART,
	};

	if (sigbus_installed())
		return 0;
	sigemptyset(&action.sa_mask);
	/* `before` must be there when the handler first runs. */
	if (sigaction(SIGBUS, NULL, &before) || sigaction(SIGBUS, &action, NULL))
		return err_set(-errno, "SIGBUS: cannot install a handler: %m");
	atomic_store(&installed, true);
	return 0;
}

int sigbus_guard(const void *at, size_t length, void (*look)(void *arg), void *arg)
{
	struct guard here = { .begin = (uintptr_t)at, .end = (uintptr_t)at + length };

	/* 0: the mask is not saved, which would be a system call for each look. */
	if (sigsetjmp(here.leave, 0)) {
		guard = NULL;
		return -EIO;
	}
	guard = &here;
	look(arg);
	guard = NULL;
	return 0;
}
