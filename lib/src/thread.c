/* SPDX-License-Identifier: MIT */
/*
 * thread.c: start a thread with the signal mask that all of ours have.
 * Internal.
 */
#include <signal.h>

#include "thread.h"

int thread_new(pthread_t *thread, void *(*run)(void *), void *arg)
{
	static const int own[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP };
	sigset_t mask, old;
	int err;

	sigfillset(&mask);
	for (unsigned i = 0; i < sizeof(own) / sizeof(*own); i++)
		sigdelset(&mask, own[i]);
	pthread_sigmask(SIG_SETMASK, &mask, &old);
	err = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}
