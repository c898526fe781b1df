/* SPDX-License-Identifier: MIT */
/*
 * rig.h: one image, one fake VMM and one session in this process, and the
 * session's events.  For the tests of the groups pager and bad-input.
 * Test support; may change freely.
 *
 * Functions that cannot fail in a sound library assert (cmocka), so call them
 * from the thread that runs the test.
 */
#ifndef RIG_H
#define RIG_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fakevmm.h"
#include "infill.h"

#define RIG_EVENTS_MAX 256

struct rig_event {
	uint32_t kind;
	int32_t error;
	uint64_t offset, length;
	char text[512];
};

struct rig_events {
	pthread_mutex_t lock;
	unsigned count; /* all, also those that did not fit */
	struct rig_event event[RIG_EVENTS_MAX];
};

struct rig_events *rig_events_new(void);

/* An infill_event_fn; ARG is a struct rig_events. */
void rig_events_add(struct infill_session *session, const struct infill_event *event, void *arg);

/* The NUMBER-th event (from 0) of KIND, waiting for it for so long; NULL: there is none. */
const struct rig_event *rig_events_wait(struct rig_events *events, uint32_t kind, unsigned number,
					unsigned timeout_ms);
unsigned rig_events_count(struct rig_events *events, uint32_t kind);

struct rig {
	/* Set by the test before rig_start(); zero is a good default. */
	struct fakeimage image;     /* the fields but `path`; bytes 0: 8 MiB */
	bool image_made;            /* `image` is made already and not this rig's */
	int source_fd;              /* > 0: the image is this file */
	bool adopt;                 /* the VMM makes the userfaultfd, as another process would */
	bool minor;                 /* private mapping of a cache */
	enum infill_backing backing;
	uint64_t page_size;
	unsigned regions;
	unsigned threads;           /* of the pool; 0: its default */
	uint64_t populate;          /* pages that the VMM has installed itself, from 0 on */
	struct infill_session_options session_options; /* event and cache are set by the rig */

	/* Set by rig_start(). */
	struct infill_image *source;
	struct infill_cache *cache;
	struct infill_pool *pool;
	struct infill_memory *memory;
	struct fakevmm *vmm;
	struct infill_session *session;
	struct rig_events *events; /* outlives a test that failed, as its session may */
};

/* All up to the session, and all of it.  0 or the session's -errno.  Skips without userfaultfd. */
void rig_prepare(struct rig *rig);
int rig_start(struct rig *rig);
int rig_start_prepared(struct rig *rig);

/* Stop the session and free everything; after a failure the test's own message comes first. */
void rig_stop(struct rig *rig);

/*
 * The counters of a session.  A thread that waited for a page may run before
 * the session's thread has counted that page: after the last load has ended
 * this waits until every fault is counted as settled.
 */
struct infill_counters rig_settled(struct infill_session *session);

/* The same for the rig's session; while a load runs, the counters as they are. */
struct infill_counters rig_counters(const struct rig *rig);

/* Assert that a load ended well, with its message. */
void rig_assert_load(struct fakevmm *vmm, int result);

/* Assert that installs = demand + trace + rest, that bytes fit, and so on. */
void rig_assert_consistent(const struct rig *rig);

/* Skip this test, saying why. */
void rig_skip(const char *reason) __attribute__((noreturn));

/* Skip unless COUNT huge pages of 2 MiB can be had. */
void rig_need_hugepages(uint64_t count);

/* Skip unless userfaultfd works for this process. */
void rig_need_userfaultfd(void);

/* Skip unless this process is root. */
void rig_need_root(const char *what_for);

/* Assert that TEXT has FRAGMENT in it. */
void rig_assert_says(const char *text, const char *fragment);

#endif
