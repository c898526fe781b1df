/* SPDX-License-Identifier: MIT */
/*
 * ahead.h: filling that no fault asked for, and the chunks that reads travel
 * in.  Internal; called on the session's thread only.
 */
#ifndef INFILL_AHEAD_H
#define INFILL_AHEAD_H

#include <stdbool.h>

#include "session.h"

/*
 * A chunk whose content has to be read: allocated with its buffer and given
 * to the thread's reader.  NULL: no memory.
 */
struct chunk *chunk_read(struct infill_session *s, const struct queue_run *run, enum why why);
void chunk_free(struct chunk *c);

/* Install one slice, or start reads.  True: there is more to do right now. */
bool ahead_step(struct infill_session *s);

/* ns until ahead_step() has something to do; UINT64_MAX: only when something else changes. */
uint64_t ahead_wait(struct infill_session *s, uint64_t now);

/* A chunk of trace or rest was read. */
void ahead_read_done(struct infill_session *s, struct chunk *c);

/* Drop what is ready; what is under way is dropped when it arrives. */
void ahead_drop(struct infill_session *s);

#endif
