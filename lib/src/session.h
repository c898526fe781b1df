/* SPDX-License-Identifier: MIT */
/*
 * session.h: one VM: what its modules share.
 *
 * A session is run by one pool thread.  Everything in the struct below the
 * line is that thread's alone; the rest is set before the thread sees the
 * session, or covered by `lock`.  The way of a page:
 *
 *   demand.c  events -> faults that wait  \
 *                                          fill.c -> uffd.c -> guest memory
 *   queue.c   what to fill next -> ahead.c /
 *
 *   vcpu.c    an exit of KVM Userfault -> guest memory, on the vCPU's thread
 *   remote.c  the same where the pager is another process: the thread asks it,
 *   channel.c and there it is a fault for demand.c
 *
 * Demand comes first: ahead.c installs one slice at a time, and only when no
 * fault waits for anything but a slow read.  That the same thread reads events
 * and installs is what makes REMOVE safe: reading a REMOVE lets the VMM's
 * madvise() go on, and an install by another thread that had looked at the
 * page's state just before would then put old content where zero has to be.
 * With KVM Userfault vCPUs' threads install, too, and REMOVE is not asked for:
 * the VMM says by a call what it gives up.
 * Internal.
 */
#ifndef INFILL_SESSION_H
#define INFILL_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "infill.h"
#include "pagemap.h"
#include "queue.h"
#include "reader.h"
#include "stream.h"
#include "timeline.h"
#include "trace.h"

#define SMALL_PAGE 4096u
#define HUGE_PAGE (2u << 20)
#define SLICE_MAX (256u << 10)    /* bytes installed between two looks at the events */
#define SLICE_DEMAND (16u << 10)  /* ... while faults keep coming */
#define DEMAND_RECENT_NS 20000000 /* "keep coming": one in this time */

struct channels;
struct chunk;
struct infill_vcpu;
struct prefault_rest;
struct remote;
struct userfault;

/* A fault that is not served yet. */
struct waiting {
	uint64_t page;
	uint64_t since; /* ns, when its event was read */
	bool minor;     /* the page is in the cache, only not mapped */
	bool exit;      /* a vCPU of another process asks: channel.h */
	struct chunk *chunk; /* that is on its way for it; NULL: to be tried again */
};

/* A part of the image where faults found bytes that are not in memory. */
struct cold {
	uint64_t number; /* offset / its size, plus 1; 0: none */
	bool asked;      /* the kernel was asked to read all of it */
};

#define COLD_PARTS 64

/*
 * Pages of 4 KiB filled for one exit of KVM Userfault.  By bench/userfault, tables
 * in bench/README.md: with UFFDIO_COPY a page takes 5,772 instructions if 4 are
 * filled for an exit, 5,232 if 16, 5,206 if 64 (arm64-vhe: 7,072, 6,020, 5,935):
 * beyond 16 a vCPU waits four times as long for 1 %.
 */
#define EXIT_RUN_MAX 16

/*
 * Pages installed for one fault of a stream that a userfaultfd reports.  Each has
 * two context switches in it, so more pages share them than with an exit: by
 * bench/userfault 64 take 11 % less than 16 for each, on x86-npt (5,473 and 6,183
 * instructions) as on arm64-vhe.
 */
#define STREAM_WINDOW_MAX 64

enum why { WHY_DEMAND, WHY_TRACE, WHY_REST };

/* A run of pages whose content is on its way, or here and not yet installed. */
struct chunk {
	struct reader_request read; /* first: reader_reap() gives it back */
	struct infill_session *session;
	struct chunk *next;
	struct queue_run run; /* the pages */
	uint64_t done;        /* of them */
	enum why why;
	const char *data; /* content of the first page, in `read.buffer`; NULL: not read */
	bool cached;      /* the cache has the content: data is not needed, as for a hole */
};

struct infill_session {
	struct infill_image *image;
	struct infill_cache *cache; /* minor mode */
	struct infill_session_options options;
	struct pool_thread *thread;
	int uffd; /* -1: none, with KVM Userfault on guest_memfd alone */
	struct userfault *userfault; /* NULL: all by the userfaultfd */
	bool protected; /* ... of a protected VM: what is there may be the guest's, out of reach */
	struct channels *channels;   /* of a VM with KVM Userfault in another process */
	struct remote *remote;       /* its pager is another process: remote.h; no thread of the pool */
	int watch_fd;
	int pagemap; /* of the VMM, or else, as present_huge() takes it */
	char *record_path;
	struct timeline *timeline;
	struct pagemap pm;

	pthread_mutex_t lock; /* the rest down to the line */
	pthread_cond_t changed;
	unsigned reached; /* 1 << enum infill_wait */
	int error;
	char text[512];
	bool detached; /* the pool thread has let go of it */
	struct infill_vcpu *vcpus, *retired; /* with KVM Userfault */
	struct prefault_rest *prefault_rest; /* parts of the trace, to be prefaulted first */
	_Atomic uint64_t discarded; /* pages, by infill_session_discard() */
	unsigned vcpus_made;

	struct trace trace;             /* read by vCPUs, too; set before they are there */
	struct trace_index trace_index;
	_Atomic size_t prefault_next;   /* run of the trace that a vCPU prefaults next */
	pthread_mutex_t record_lock;    /* who adds to a recording, or closes it */
	uint64_t *recorded;             /* a bit for each page, under it; NULL: not known */
	atomic_bool over; /* ended, failed or leaving: nothing is filled any more */
	/* ---- */
	struct infill_session *next; /* in its thread's list */
	bool ended;    /* the VMM is gone */
	bool resident; /* nothing is missing */
	bool leaving; /* infill_session_stop() waits for its reads to end */
	unsigned under_way; /* chunks that the reader has */
	struct waiting *waiting;
	unsigned waiting_count, waiting_size;
	struct streams streams;
	uint64_t served_to; /* end of the pages that are filled for the fault that is served; or 0 */
	struct cold cold[COLD_PARTS];
	uint64_t demand_ns;      /* when the last fault was read */
	uint64_t no_memory_ns;   /* since when installs fail with ENOMEM; 0: they do not */
	unsigned retries;        /* in a row, because of EAGAIN; 0: none needed */
	unsigned demand_reading; /* demand chunks under way */
	struct queue queue;
	bool recording;
	bool saving; /* save_thread runs */
	pthread_t save_thread, remote_thread;
	struct chunk *ready, **ready_tail; /* ahead of demand, content is here */
	uint64_t ahead_bytes;              /* ahead of demand, under way or ready */
	unsigned trace_reading;            /* chunks of the trace under way */
	bool trace_told;                   /* that all of it is in */
};

/* session.c: for who starts sessions of another kind. */

/* Allocated, with copies of OPTIONS; IMAGE may be NULL. */
int session_new(struct infill_session **session, struct infill_image *image,
		const struct infill_session_options *options);
void session_free(struct infill_session *s);

/* An empty state file; an fd or -errno. */
int session_new_state(void);

/* Make a userfaultfd for all memory that can have one: s->uffd. */
int session_watch(struct infill_session *s, const struct infill_memory *memory);

struct userfault_part;

/* What a VMM sent, all of it the caller's but PART. */
struct session_files {
	int uffd;     /* -1: none */
	int state;
	int sock;     /* the main socket */
	const int *channel;
	unsigned channels;
	bool protected; /* its VM is */
	const struct userfault_part *part; /* for each region, in MEMORY's order */
};

/*
 * infill_session_adopt_state() for a VM with KVM Userfault.  The mappings of
 * FILES->part are the session's from now on, also after a failure; the fds
 * must stay open until infill_session_stop().
 */
int session_adopt_userfault(struct infill_session **session, struct infill_pool *pool,
			    const struct infill_memory *memory, struct infill_image *image,
			    const struct session_files *files,
			    const struct infill_session_options *options);

/* session.c: what the other modules report. */

/*
 * The session cannot go on: CODE with the text of err_set(), or of CODE.  Of a VM of
 * this process with KVM Userfault what is missing is poisoned.  Any thread.
 */
void session_fail(struct infill_session *s, int code);

/* Has it ended, or failed?  Any thread. */
static inline bool session_over(const struct infill_session *s)
{
	return atomic_load_explicit(&s->over, memory_order_acquire);
}

/* The VMM is gone. */
void session_end(struct infill_session *s);

/* Tell the callback; TEXT may be NULL. */
void session_event(struct infill_session *s, enum infill_event_kind kind, int error,
		   uint64_t offset, uint64_t length, const char *text);

void session_reach(struct infill_session *s, enum infill_wait what);

/* Call after pages were settled: notices that none is missing. */
void session_check_resident(struct infill_session *s);

/*
 * Record the touch of PAGE, which was missing, at NOW, if it is the first: several
 * may miss it at once.  True: it is the first of all.  Any thread.
 */
bool session_record(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		    uint64_t now);

/* Pages from PAGE on that are one run of the trace with it, a few at most; 1 if it is in none. */
uint64_t session_trace_window(const struct infill_session *s, const struct pagemap_region *r,
			      uint64_t page);

/* Does the VM need its pager no more? */
bool session_independent(const struct infill_session *s);

/* Close the recording window if it is over; ns until it has to be asked again. */
uint64_t session_recording(struct infill_session *s, uint64_t now);

#endif
