/* SPDX-License-Identifier: MIT */
/*
 * infill.h: the public interface of libinfill, which populates the memory of
 * KVM guests on demand and ahead of time.
 *
 * Everything here is ABI from version 0.1 on: symbols are added, none change
 * their meaning, and option structs only grow at their end.
 *
 * Model.  A `session` is one VM.  It joins an `image` (where page content
 * comes from), a `memory` (the guest's regions) and a userfaultfd, and is run
 * by one thread of a `pool`.  That thread alone reads the userfaultfd and
 * alone installs pages, so a balloon's REMOVE can never race with an install.
 * (With KVM Userfault, infill_session_start_vm(), the vCPUs' threads do, too.)
 * What it knows about each page is kept in a memfd, so that another process
 * can go on from it (infill_session_resume()).
 *
 * Conventions.
 *  - Functions return 0 (or a documented non-negative value) on success and
 *    -errno on failure; they never print and never exit.  After a failure
 *    infill_error() has one line that names what is wrong and what to do.
 *  - Option structs begin with `size`, set by the caller to sizeof(struct);
 *    a zero field means the default.  Unknown non-zero bytes are -E2BIG,
 *    unknown flags and a `reserved` that is not zero -EINVAL.
 *  - Addresses, offsets and lengths are in bytes; times are CLOCK_MONOTONIC
 *    nanoseconds.
 *  - Objects are freed by the *_close() or *_free() of their kind, which take
 *    NULL.  An object that another one was built on must outlive it, unless
 *    its comment says that a reference is taken.
 *  - Different objects may be used from different threads at once.  One
 *    object may be used by one thread at a time, except where "any thread"
 *    is said.
 */
#ifndef INFILL_H
#define INFILL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

#define INFILL_VERSION "0.1.0"

/* The version of the library that runs, as "major.minor.patch".  Any thread. */
const char *infill_version(void);

/*
 * The reason of this thread's last failed call, as "what: why", without a
 * newline; "" if none.  Owned by the library, valid until the thread's next
 * call.  Any thread.
 */
const char *infill_error(void);

/* ---- image: where page content comes from ------------------------------ */

struct infill_image;

struct infill_image_options {
	size_t size;
	uint32_t flags; /* none is known yet */
	uint32_t reserved;
};

/* What a trace is bound to, and what is verified while an image is served. */
struct infill_identity {
	uint64_t bytes;    /* file size */
	uint64_t inode;
	int64_t mtime_sec; /* time of last modification, seconds and nanoseconds */
	int64_t mtime_nsec;
};

/*
 * Open the raw memory file PATH read-only.  The file may have holes; they
 * read as zero and are installed as zero pages.  It must not change while it
 * is open here: size, mtime and inode are verified after every read, before
 * the bytes are used, and a difference is -ESTALE, for good.
 *
 * -ENOENT, -EACCES, ... as open(2); -EINVAL: not a regular file, or empty, or
 * not a multiple of 4096 bytes.
 */
int infill_image_open(struct infill_image **image, const char *path,
		      const struct infill_image_options *options);

/* The same from an open file.  FD is duplicated; NAME is used in messages. */
int infill_image_open_fd(struct infill_image **image, int fd, const char *name,
			 const struct infill_image_options *options);

/* Size of the image in bytes. */
uint64_t infill_image_bytes(const struct infill_image *image);

/* The identity that was found when the image was opened. */
void infill_image_identity(const struct infill_image *image, struct infill_identity *identity);

/* 0, or -ESTALE once the file is no longer the one that was opened.  Any thread. */
int infill_image_check(struct infill_image *image);

/* Close; no session may use it any more.  NULL is ignored. */
void infill_image_close(struct infill_image *image);

/* ---- memory: the guest's regions ---------------------------------------- */

struct infill_memory;

enum infill_backing {
	INFILL_BACKING_ANON = 0, /* private anonymous memory */
	INFILL_BACKING_SHMEM,    /* a memfd or tmpfs file */
	INFILL_BACKING_HUGETLB,  /* hugetlbfs or MAP_HUGETLB */
	INFILL_BACKING_GUEST_MEMFD, /* a guest_memfd, mapped at hva (GUEST_MEMFD_FLAG_MMAP):
				       only for infill_session_start_vm(), _connect_vm() */
};

struct infill_region {
	size_t size;
	uint64_t gpa;       /* guest-physical address */
	uint64_t hva;       /* address in the VMM's address space */
	uint64_t length;    /* bytes, a multiple of page_size */
	uint64_t offset;    /* where the region's content begins in the image */
	uint64_t page_size; /* granule of the mapping: 4096 (default) or 2 MiB */
	uint32_t backing;   /* enum infill_backing */
	uint32_t reserved;
	/* The memslot; for infill_session_start_vm() and _connect_vm(), else 0. */
	uint32_t slot;               /* its number; address space in bits 16 to 31 */
	uint32_t slot_flags;         /* its KVM_MEM_*, but for KVM_MEM_USERFAULT */
	uint64_t guest_memfd_offset; /* with KVM_MEM_GUEST_MEMFD: where it begins there */
	int32_t guest_memfd;         /* ... and the file; the caller's */
	uint32_t reserved_slot;
	uint64_t fill_hva; /* guest_memfd: another mapping of it, where content is
			      written (but for _connect_vm()); 0: hva */
};

#define INFILL_MEMORY_REGIONS_MAX 64

int infill_memory_new(struct infill_memory **memory);

/*
 * Add a region (copied).  -EINVAL: unaligned, empty, wraps around, or a page
 * size that is not known; -EEXIST: overlaps another region in hva or in gpa;
 * -ENOSPC: more than INFILL_MEMORY_REGIONS_MAX.
 */
int infill_memory_add(struct infill_memory *memory, const struct infill_region *region);

/*
 * Map fresh guest memory of REGION's length, backing and page size in this
 * process, set region->hva and add it.  infill_memory_free() unmaps it.
 * For VMMs that do not care where their memory is.
 */
int infill_memory_map(struct infill_memory *memory, struct infill_region *region);

/* Sum of the regions' lengths in bytes. */
uint64_t infill_memory_bytes(const struct infill_memory *memory);

void infill_memory_free(struct infill_memory *memory);

/* ---- cache: one copy of an image for many clones ------------------------ */

/*
 * A memfd that holds those parts of an image that some clone has needed.
 * VMMs map it MAP_PRIVATE as guest memory: clean pages are then shared by all
 * clones, and a guest's write makes a copy of that page.  Its sessions use
 * minor mode (UFFDIO_CONTINUE).  4 KiB pages.  Any thread.
 */
struct infill_cache;

int infill_cache_new(struct infill_cache **cache, struct infill_image *image);

/* The memfd, to be mapped MAP_PRIVATE; owned by the cache. */
int infill_cache_fd(const struct infill_cache *cache);

/* Bytes of the image that the cache holds now. */
uint64_t infill_cache_bytes(const struct infill_cache *cache);

void infill_cache_free(struct infill_cache *cache);

/* ---- pool: the threads that move pages ---------------------------------- */

struct infill_pool;

struct infill_pool_options {
	size_t size;
	uint32_t threads; /* 0: one for each two CPUs that this process may use, 1 to 16 */
	uint32_t reserved;
};

/* Start the threads.  Sessions are spread over them. */
int infill_pool_new(struct infill_pool **pool, const struct infill_pool_options *options);

/* Number of threads. */
unsigned infill_pool_threads(const struct infill_pool *pool);

/* Stop the threads; every session must be stopped already. */
void infill_pool_free(struct infill_pool *pool);

/* ---- session: one VM ----------------------------------------------------- */

struct infill_session;

/* What is filled without a fault having asked for it. */
enum infill_fill {
	INFILL_FILL_ALL = 0, /* the trace, if there is one, then all that is left */
	INFILL_FILL_TRACE,   /* the recorded trace only */
	INFILL_FILL_NONE,    /* nothing */
};

enum infill_event_kind {
	INFILL_EVENT_TRACE_IGNORED = 1, /* the trace is damaged or of another image */
	INFILL_EVENT_TRACE_FAILED,      /* the recorded trace could not be written */
	INFILL_EVENT_TRACE_DONE,        /* all of the trace is in guest memory */
	INFILL_EVENT_RECORDED,          /* the recording window closed, the trace is written */
	INFILL_EVENT_POISON,            /* pages could not be read, and were poisoned */
	INFILL_EVENT_RESIDENT,          /* no page is missing: without a cache, the VM needs
					   its pager no more, its memory is unregistered */
	INFILL_EVENT_ENDED,             /* the VMM is gone */
	INFILL_EVENT_ERROR,             /* the session cannot go on; vCPUs that fault wait, or
					   with KVM Userfault are told */
};

struct infill_event {
	uint32_t kind;    /* enum infill_event_kind */
	int32_t error;    /* -errno for TRACE_*, POISON and ERROR, else 0 */
	uint64_t offset;  /* image offset and length in bytes, for POISON */
	uint64_t length;
	const char *text; /* one line, "what: why"; valid during the call */
};

/*
 * Called on the pool's thread (TRACE_IGNORED: by the function that starts the
 * session; RECORDED and TRACE_FAILED: by a thread that writes the file, or by
 * infill_session_stop()): must not block and must not call back into the
 * session, but for infill_session_counters().  With KVM Userfault vCPUs'
 * threads call it, too.
 */
typedef void infill_event_fn(struct infill_session *session, const struct infill_event *event,
			     void *arg);

struct infill_session_options {
	size_t size;
	uint32_t fill;               /* enum infill_fill */
	uint32_t reserved;
	uint64_t rate;               /* bytes per second for what neither fault nor trace
					asked for; 0: no bound */
	struct infill_cache *cache;  /* minor mode on this cache; NULL: copy */
	const char *trace;           /* file to replay; NULL: none */
	const char *record;          /* file to record the trace to; NULL: none.
					Excludes `trace`.  Background fill waits until
					the recording window has closed */
	uint64_t record_settle_ns;   /* window closes after so long with fewer than 16
					first touches; default 1 s */
	uint64_t record_time_ns;     /* ... or so long after the first; default 30 s */
	uint64_t record_pages;       /* ... or after so many; default 262144 */
	int timeline_fd;             /* a file for the log of installs; <= 0: none.
					Duplicated */
	int watch_fd;                /* a pidfd of the VMM or a socket to it: when it hangs
					up, the VMM is gone; <= 0: none.  Duplicated */
	infill_event_fn *event;      /* NULL: none */
	void *event_arg;
	uint32_t flags;              /* INFILL_SESSION_* */
	uint32_t reserved_flags;
};

/*
 * Of infill_session_start_vm() and _connect_vm(): map by KVM_PRE_FAULT_MEMORY
 * what an exit has filled beyond the page that the guest asked for, where it is
 * enough to pay.  A protected VM is given that memory for good.  What cannot be
 * mapped costs nothing: the guest meets it by itself.  It is tried again with the
 * next exit, but for a VM of which KVM says that it has no such call.
 */
#define INFILL_SESSION_PREFAULT (1u << 0)

/*
 * Create a userfaultfd for MEMORY of this process, register all of it and
 * start.  Returns when faults are being served; the time does not depend on
 * the size of the image.  MEMORY is copied; IMAGE, POOL and options->cache
 * must outlive the session.
 *
 * -EPERM: userfaultfd is not permitted to this process (`infill doctor`);
 * -ENOSYS: no userfaultfd; -EOPNOTSUPP: a kernel feature that the options
 * need is missing; -ERANGE: a region reaches past the image's end.
 */
int infill_session_start(struct infill_session **session, struct infill_pool *pool,
			 const struct infill_memory *memory, struct infill_image *image,
			 const struct infill_session_options *options);

/*
 * The same on a userfaultfd that a VMM made: UFFDIO_API done, MEMORY
 * registered (MISSING, or MISSING | MINOR with a cache), addresses being the
 * VMM's.  UFFD is duplicated; the caller's stays open and is the caller's.
 * -EBADF: not a userfaultfd.
 */
int infill_session_adopt(struct infill_session **session, struct infill_pool *pool,
			 const struct infill_memory *memory, struct infill_image *image, int uffd,
			 const struct infill_session_options *options);

/*
 * Serve a VM of this process by KVM Userfault: VM_FD is KVM's.  For each region
 * its memslot is created, or set anew if it exists, with KVM_MEM_USERFAULT; no
 * vCPU may be in KVM_RUN.  A vCPU that needs a missing page exits, and its
 * thread fills the page: see infill_vcpu_exit().  When nothing is missing the
 * flag is taken off again (INFILL_EVENT_RESIDENT).
 *
 * What KVM, or this process, accesses itself does not exit.  Memory that is no
 * guest_memfd is watched by a userfaultfd for that: who touches a missing page
 * there, through the mapping that the session has, waits for it.  A guest_memfd
 * cannot be watched: give what KVM accesses there (the clocks and other pages
 * that it shares with the guest) to infill_session_fill() before a vCPU runs.
 * All memory must read as zero at the start.  infill_vcpu(3) has what else may
 * be done with it meanwhile.
 *
 * MEMORY is copied; IMAGE, POOL, VM_FD's VM and the regions must outlive the
 * session.  infill_session_stop() before INFILL_EVENT_RESIDENT leaves the flag
 * on: vCPUs that miss a page then exit, and nobody fills it.
 *
 * When the session fails every call for a missing page returns its error, and
 * memory that has a userfaultfd is poisoned where it is missing (Linux 6.6): who
 * touches it, or waits for it in KVM, gets SIGBUS, or EFAULT from a system call,
 * rather than wait for ever.  No page reads as zero for that.
 *
 * A protected VM of pKVM is found out by itself.  What its guest has touched the
 * host has lost: the session does nothing to a page once its bit is clear, and
 * neither may the VMM.  It is started before a vCPU has run or prefaulted, or
 * with memslots that are new; infill_vcpu(3) has all the rules.
 *
 * -EOPNOTSUPP: the kernel, or this kind of VM, has no KVM Userfault, or a
 * region's pages are smaller than the host's, or a protected VM is to have a
 * guest_memfd or hugetlb memory; -EPERM, -ENOSYS: as infill_session_start();
 * -EPERM also: a protected VM has run; -EINVAL: a cache, or a memslot that KVM
 * refuses.
 */
int infill_session_start_vm(struct infill_session **session, struct infill_pool *pool, int vm_fd,
			    const struct infill_memory *memory, struct infill_image *image,
			    const struct infill_session_options *options);

/*
 * The same with a pager in another process, which listens at PATH (`infill
 * serve`): it has the image, trace and all that options say of filling, and its
 * workers may die.  The bitmaps are in a memfd that both share; the pager gets
 * the guest_memfds (their memory is charged to its control group) and the
 * userfaultfd of other memory.  infill_vcpu_exit() and infill_session_fill() ask
 * it and wait; up to 191 of VCPUS vCPUs do so without sharing a connection.
 * Returns when the pager serves the VM, or has refused it.  A thread of the
 * library hears what the pager says and calls options->event, of which
 * RESIDENT and ERROR come.
 *
 * When the pager is gone, supervisor and all, before nothing is missing, the
 * session fails with -ECONNRESET, and with the pager's error when it tells of one.
 *
 * PATH is used here only, MEMORY is copied.  OPTIONS may have event and flags.
 * infill_session_state_fd() says nothing about this VM.
 *
 * As infill_session_start_vm(), and -ECONNREFUSED, -ENOENT: no pager listens;
 * -ETIMEDOUT: it does not answer; -EPROTO and others: it refuses the VM, and
 * infill_error() has its reason; -EINVAL: an option that is the pager's.
 */
int infill_session_connect_vm(struct infill_session **session, const char *path, int vm_fd,
			      const struct infill_memory *memory, unsigned vcpus,
			      const struct infill_session_options *options);

/*
 * Of a session of infill_session_start_vm() or _connect_vm(): have LENGTH bytes from GPA on in
 * memory before this returns.  Any thread.  -EFAULT: not all of it is in the
 * session's memslots; -EHWPOISON: a page cannot be read; the session's error.
 */
int infill_session_fill(struct infill_session *session, uint64_t gpa, uint64_t length);

/*
 * Of a session with KVM Userfault, at any time: the guest gives up
 * LENGTH bytes from GPA on (balloon, free page reporting).  Their memory is
 * freed, and they read as zero from then on, whether they were missing or not;
 * what the guest writes there while this runs may be lost, what it writes later
 * is not.  Waits for pages that are being filled.  Any thread, but no
 * callback of the session.
 *
 * -EFAULT: not all of it is in the session's memslots; -EINVAL: no whole pages
 * of theirs, or another kind of session (which sees madvise() by itself);
 * -EOPNOTSUPP: a protected VM, which keeps what it was given: nothing was done.
 * Else -errno of madvise(2), -EINVAL for memory that is locked: what could not
 * be freed has the content that it had.
 */
int infill_session_discard(struct infill_session *session, uint64_t gpa, uint64_t length);

/*
 * Go on with a session whose process died.  STATE_FD is the memfd that
 * infill_session_state_fd() gave there, UFFD the same userfaultfd; both are
 * duplicated.  The earlier process must be dead, not only dying: wait for it.
 * -EINVAL: not such a file or damaged; -ESTALE: the image is another one.
 */
int infill_session_resume(struct infill_session **session, struct infill_pool *pool,
			  struct infill_image *image, int uffd, int state_fd,
			  const struct infill_session_options *options);

/*
 * The same two with a state file that the caller made (an empty memfd), so
 * that it can be kept elsewhere before the session exists.  If STATE_FD is
 * empty or its set-up was cut short, MEMORY starts it; else it is resumed and
 * MEMORY must describe the same regions (-EINVAL otherwise).
 */
int infill_session_adopt_state(struct infill_session **session, struct infill_pool *pool,
			       const struct infill_memory *memory, struct infill_image *image,
			       int uffd, int state_fd,
			       const struct infill_session_options *options);

/* The memfd with the session's page states; owned by the session. */
int infill_session_state_fd(const struct infill_session *session);

/* The session's userfaultfd; owned by the session. */
int infill_session_uffd(const struct infill_session *session);

enum infill_wait {
	INFILL_WAIT_TRACE = 1, /* the trace is in guest memory (at once without one) */
	INFILL_WAIT_RESIDENT,  /* nothing is missing */
	INFILL_WAIT_RECORDED,  /* the recording window has closed */
	INFILL_WAIT_END,       /* the VMM is gone, or the session failed */
};

/*
 * Wait until WHAT has come about, for TIMEOUT_MS at most (-1: no bound).
 * 0; -ETIMEDOUT; the session's error if it failed; -ECANCELED if it ended
 * before (not for INFILL_WAIT_END).  Any thread.
 */
int infill_session_wait(struct infill_session *session, enum infill_wait what, int timeout_ms);

enum infill_mark {
	INFILL_MARK_RESTORED = 1, /* the VMM's restore call has returned */
	INFILL_MARK_FIRST_WORK,   /* the guest has done its first useful work */
};

/* Tell the session what only its user can know.  The first one of a kind counts.  Any thread. */
int infill_session_mark(struct infill_session *session, enum infill_mark mark);

/* Counters of a session since its start, resumes included.  All but `missing` grow only. */
struct infill_counters {
	size_t size;
	uint64_t pages;         /* of all regions, in their own page sizes */
	uint64_t faults;        /* page-fault events read */
	uint64_t installs;      /* pages installed, for whatever reason */
	uint64_t demand_pages;  /* ... of these because of a fault */
	uint64_t trace_pages;   /* ... because the trace named them */
	uint64_t rest_pages;    /* ... because they were left */
	uint64_t bytes;         /* bytes installed, zero pages included */
	uint64_t zero_pages;    /* installed without a copy */
	uint64_t duplicates;    /* found installed already (EEXIST) */
	uint64_t retries;       /* installs put off because of an unread event (EAGAIN) */
	uint64_t poisoned;      /* pages */
	uint64_t removed;       /* pages given up by the VMM (balloon) */
	uint64_t read_bytes;    /* read from the image */
	uint64_t slow_reads;    /* reads for a fault that were not in the page cache */
	uint64_t resumes;       /* times that another process went on */
	uint64_t stall_ns;      /* sum of the fault-to-wake latencies */
	uint64_t latency_p50_ns;/* fault-to-wake: from the event read to the vCPU woken */
	uint64_t latency_p90_ns;
	uint64_t latency_p99_ns;
	uint64_t latency_p999_ns;
	uint64_t latency_max_ns;
	uint64_t start_ns;      /* times; 0: not yet */
	uint64_t restored_ns;
	uint64_t trace_done_ns;
	uint64_t first_work_ns;
	uint64_t resident_ns;
	uint64_t missing;       /* pages that still have to come from the image; only falls */
	uint64_t latency_count; /* latencies that were taken */
	uint64_t prefault_bytes;/* mapped by KVM_PRE_FAULT_MEMORY */
};

/* Any thread; also after the session ended. */
int infill_session_counters(const struct infill_session *session, struct infill_counters *counters);

/*
 * Write the fault-to-wake latencies to FD in HdrHistogram's percentile text
 * format, in microseconds, 3 significant digits.  Any thread.
 */
int infill_session_write_latency(const struct infill_session *session, int fd);

/* The error that a session ended with: 0, or -errno and its line in *TEXT (may be NULL). */
int infill_session_error(const struct infill_session *session, const char **text);

/*
 * Stop serving and free the session.  Pages that are missing stay missing and
 * are still registered: whoever stops a session before INFILL_WAIT_RESIDENT
 * must keep the userfaultfd open until the VM is gone, or the guest reads
 * zeros.  A recording that is open is written.  NULL is ignored.
 */
void infill_session_stop(struct infill_session *session);

/* ---- vcpu: exits of KVM Userfault ---------------------------------------- */

struct infill_vcpu;
struct kvm_run;

/*
 * A vCPU of the VM that SESSION serves (infill_session_start_vm(), _connect_vm()).  VCPU_FD is
 * KVM's and must stay open until infill_vcpu_free().  Any thread; what follows
 * is called by the thread that runs the vCPU.
 */
int infill_vcpu_new(struct infill_vcpu **vcpu, struct infill_session *session, int vcpu_fd);

/*
 * KVM_RUN has failed with EFAULT: fill the page that RUN says is missing, with
 * what is likely wanted with it, on this thread.
 *
 *   0           it is there: KVM_RUN again
 *   1           RUN is no exit of KVM Userfault: it is the caller's
 *   -EHWPOISON  the page cannot be read, and never will: have the guest take a
 *               memory error, or stop the vCPU
 *   -EINTR      a signal came while another process's pager was waited for, or
 *               run->immediate_exit is set: call KVM_RUN, which exits again
 *   -errno      the session cannot go on (-ESTALE: the image has changed,
 *               -ECONNRESET: the pager is gone, ...)
 */
int infill_vcpu_exit(struct infill_vcpu *vcpu, const struct kvm_run *run);

/*
 * Before the first KVM_RUN: map what of the trace is in memory, in first-touch
 * order, by KVM_PRE_FAULT_MEMORY, BYTES at most, rounded up to whole pages (0:
 * all).  The vCPUs of a session share the trace between them: each call, by
 * whichever of them, goes on where others have ended.  0, also when a signal ended
 * it early, or -EOPNOTSUPP: not for this VM.
 * Of a protected VM: it is given the memory, so all vCPUs must be there; and
 * -ENOMEM: RLIMIT_MEMLOCK is used up; -EHWPOISON: the host's memory is broken;
 * -EPERM: another VM has a page; -EOPNOTSUPP also: memory of another kind of
 * file.  What was given before that stays given; a later call goes on with the
 * page that there was no memory for, or else behind the one that failed.
 */
int infill_vcpu_prefault(struct infill_vcpu *vcpu, uint64_t bytes);

/* Before infill_session_stop().  NULL is ignored. */
void infill_vcpu_free(struct infill_vcpu *vcpu);

/* ---- server: a pager for VMMs, by Firecracker's protocol or KVM Userfault's */

enum infill_on_error {
	INFILL_ON_ERROR_KILL = 0, /* SIGKILL the VMM: no guest hangs or reads zeros */
	INFILL_ON_ERROR_TELL,     /* only tell it on its socket; its vCPUs wait */
};

struct infill_server_options {
	size_t size;
	const char *socket;      /* path to listen on; removed at the end */
	const char *image;       /* path */
	uint32_t on_error;       /* enum infill_on_error */
	uint32_t max_vms;        /* at once; default 256 */
	uint32_t max_clients;    /* connections that have not sent a handshake; default 32 */
	uint32_t handshake_ms;   /* a client must have sent it by then; default 5000 */
	uint32_t threads;        /* as infill_pool_options.threads */
	uint32_t flags;          /* INFILL_SERVER_* */
	const char *timeline;    /* file for the log of installs; NULL: none */
	const struct infill_session_options *session; /* for every VM; event, timeline_fd,
				    watch_fd and cache must be unset */
	int stop_fd;             /* the server ends when this becomes readable; <= 0: never */
	int ready_fd;            /* one byte is written to it when the socket listens; <= 0: none */
	void (*log)(int level, const char *line, void *arg); /* levels as syslog(3); NULL: none */
	void *log_arg;
};

#define INFILL_SERVER_FD_STORE (1u << 0) /* keep fds with the service manager, not a supervisor */
#define INFILL_SERVER_SHARED   (1u << 1) /* offer a cache to clients that ask for one */
#define INFILL_SERVER_ONE_VM   (1u << 2) /* end when the first VM has ended */

/*
 * Run the daemon until stop_fd is readable: this process becomes the
 * supervisor, which keeps each VM's userfaultfd and page states and starts
 * the worker again when it dies.  The process must be single-threaded when
 * it calls this, because the worker is forked.
 */
int infill_server_run(const struct infill_server_options *options);

/*
 * Ask the pager at the socket PATH what it has done, as JSON text (the object
 * that infill-stat(1) documents); *TEXT is freed by the caller.  HDR: the
 * latencies in percentile text instead.  Waits TIMEOUT_MS at most.
 */
int infill_server_stat(const char *path, bool hdr, int timeout_ms, char **text);

/*
 * Tell the pager at the socket PATH what infill_session_mark() tells a session:
 * the first one of a kind counts, and its time is when the pager reads it.
 * VM is the `id` that infill_server_stat() has; 0: the one VM that is served
 * (-EPROTO if there is none, or more than one).
 */
int infill_server_mark(const char *path, uint64_t vm, enum infill_mark mark, int timeout_ms);

/* ---- handshake: the client's side, for a VMM or a shim -------------------- */

/*
 * Connect to the pager at PATH and hand it UFFD and the regions of MEMORY, as
 * Firecracker does.  Returns the connected socket, which the caller keeps
 * open for as long as the VM lives, or -errno.
 */
int infill_handshake_send(const char *path, int uffd, const struct infill_memory *memory);

/*
 * Ask a pager that runs with INFILL_SERVER_SHARED for its cache: *CACHE_FD is
 * a memfd to be mapped MAP_PRIVATE and then sent with
 * infill_handshake_send_on() over the returned socket.
 */
int infill_handshake_cache(const char *path, int *cache_fd);
int infill_handshake_send_on(int socket, int uffd, const struct infill_memory *memory);

/* ---- host: what this machine can do -------------------------------------- */

enum infill_userfaultfd {
	INFILL_USERFAULTFD_NO = 0,      /* none: no kernel support, or not permitted */
	INFILL_USERFAULTFD_SYSCALL,     /* userfaultfd(2), faults from the kernel included */
	INFILL_USERFAULTFD_DEVICE,      /* /dev/userfaultfd */
	INFILL_USERFAULTFD_USER_ONLY,   /* only faults from user mode: not enough for KVM */
};

/* How KVM runs on arm64.  There is no interface that tells; see infill_host(3). */
enum infill_kvm_mode {
	INFILL_KVM_MODE_UNKNOWN = 0, /* not told, or not arm64 */
	INFILL_KVM_MODE_VHE,
	INFILL_KVM_MODE_NESTED,      /* VHE, and guests may have guests */
	INFILL_KVM_MODE_NVHE,
	INFILL_KVM_MODE_PROTECTED,   /* pKVM */
};

struct infill_host {
	size_t size;
	uint32_t userfaultfd;      /* enum infill_userfaultfd: what this process would use */
	int32_t userfaultfd_error; /* -errno of the best way, if NO or USER_ONLY */
	int32_t sysctl;            /* vm.unprivileged_userfaultfd, or -1 */
	int32_t device_error;      /* -errno of opening /dev/userfaultfd, or 0 */
	uint64_t features;         /* UFFD_FEATURE_* bits */
	uint64_t hugepages_2m;     /* in the pool, and free */
	uint64_t hugepages_2m_free;
	int32_t kvm_error;         /* -errno of opening /dev/kvm, or 0 */
	int32_t kvm_api;           /* KVM_GET_API_VERSION */
	int32_t kvm_pre_fault;     /* KVM_CAP_PRE_FAULT_MEMORY, or 0: of a VM */
	int32_t kvm_userfault;     /* KVM Userfault's capability, or 0 */
	int32_t io_uring_error;    /* -errno of setting up a ring, or 0 */
	uint32_t cpus;             /* that this process may use */
	uint64_t memlock_bytes;    /* RLIMIT_MEMLOCK, UINT64_MAX: none */
	char kernel[64];           /* uname release */
	int32_t kvm_vm_error;      /* -errno of making a VM, or 0 */
	uint32_t kvm_guest_memfd;  /* GUEST_MEMFD_FLAG_* that a VM may use, 0: it cannot be mapped */
	uint32_t kvm_mode;         /* enum infill_kvm_mode */
	uint32_t kvm_protected;    /* 1: KVM makes protected VMs, as far as one can tell who
				      makes none; see infill_host(3) */
};

/* Look; changes nothing.  Always 0 but for a wrong size. */
int infill_host_probe(struct infill_host *host);

/* Open a userfaultfd in the best way permitted and do UFFDIO_API with FEATURES; an fd or -errno. */
int infill_host_userfaultfd(uint64_t features);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif /* INFILL_H */
