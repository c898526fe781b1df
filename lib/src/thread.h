/* SPDX-License-Identifier: MIT */
/*
 * thread.h: the library's own threads.  Internal.
 */
#ifndef INFILL_THREAD_H
#define INFILL_THREAD_H

#include <pthread.h>

/*
 * Start a thread that leaves signals to the program's own threads, but for
 * those that its own instructions raise: a handler of the program's may want
 * to say where.  0 or -errno.
 */
int thread_new(pthread_t *thread, void *(*run)(void *), void *arg);

#endif
