/* SPDX-License-Identifier: MIT */
/*
 * pool.h: the threads that run sessions.  A session is one thread's, for
 * good.  Internal.
 */
#ifndef INFILL_POOL_H
#define INFILL_POOL_H

#include "infill.h"
#include "reader.h"

struct pool_thread;

/* Give a session to the thread that has the fewest. */
int pool_add(struct infill_pool *pool, struct infill_session *s);

/* Take it back: returns when the thread has let go of it. */
void pool_remove(struct infill_session *s);

/* Have the session's thread look whether pages are missing still, or a recording is over.  Any thread. */
void pool_wake(struct infill_session *s);

/*
 * For the session's thread: its reader, and a buffer for what is read and
 * installed at once, page aligned, for up to SLICE_MAX bytes or a huge page.
 * NULL: no memory (never for SLICE_MAX).
 */
struct reader *pool_reader(struct pool_thread *t);
char *pool_buffer(struct pool_thread *t, size_t length);

/*
 * Buffers for reads, page aligned.  Those for huge pages are kept for the
 * next: to map 2 MiB anew takes longer than to read them.
 */
void *pool_take_buffer(struct pool_thread *t, size_t length);
void pool_give_buffer(struct pool_thread *t, void *buffer, size_t length);

#endif
