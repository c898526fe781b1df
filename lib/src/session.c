/* SPDX-License-Identifier: MIT */
/*
 * session.c: the life of one VM's session, and its public face.  Internal but
 * for the functions of infill.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ahead.h"
#include "channel.h"
#include "demand.h"
#include "err.h"
#include "image.h"
#include "memory.h"
#include "options.h"
#include "poison.h"
#include "pool.h"
#include "present.h"
#include "remote_session.h"
#include "session.h"
#include "thread.h"
#include "uffd.h"
#include "userfault.h"
#include "vcpu.h"

#define RECORD_SETTLE_NS 1000000000u
#define RECORD_TIME_NS 30000000000u
#define RECORD_PAGES 262144u
#define RECORD_PAGES_MAX (64u << 20)

/* ---- what the other modules report; on the session's thread ------------- */

void session_event(struct infill_session *s, enum infill_event_kind kind, int error,
		   uint64_t offset, uint64_t length, const char *text)
{
	struct infill_event e = {
		.kind = kind,
		.error = error,
		.offset = offset,
		.length = length,
		.text = text ? text : "",
	};

	if (s->options.event)
		s->options.event(s, &e, s->options.event_arg);
}

void session_reach(struct infill_session *s, enum infill_wait what)
{
	pthread_mutex_lock(&s->lock);
	s->reached |= 1u << what;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void session_fail(struct infill_session *s, int code)
{
	bool late;

	pthread_mutex_lock(&s->lock);
	late = s->over;
	if (!late) {
		s->error = code;
		strncpy(s->text, err_text(), sizeof(s->text) - 1);
		s->over = true;
	}
	pthread_mutex_unlock(&s->lock);
	if (late)
		return;
	timeline_mark(s->timeline, stats_now(), "error");
	if (s->channels)
		channels_failed(s->channels, code);
	session_event(s, INFILL_EVENT_ERROR, code, 0, 0, s->text);
	session_reach(s, INFILL_WAIT_END);
	/* A pager in another process tells the VMM, which does it there. */
	if (s->userfault && !s->remote && !s->channels)
		poison_missing(s);
}

void session_end(struct infill_session *s)
{
	if (s->ended)
		return;
	s->ended = true;
	s->over = true;
	timeline_mark(s->timeline, stats_now(), "end");
	session_event(s, INFILL_EVENT_ENDED, 0, 0, 0, NULL);
	session_reach(s, INFILL_WAIT_END);
}

uint64_t session_trace_window(const struct infill_session *s, const struct pagemap_region *r,
			      uint64_t page)
{
	uint64_t offset = pagemap_offset(r, page);
	const struct trace_run *run = trace_index_find(&s->trace_index, offset);
	uint64_t left;

	if (!run || s->options.fill == INFILL_FILL_NONE)
		return 1;
	left = (run->offset + run->length - offset) / r->page_size;
	return left < 1 ? 1 : left < EXIT_RUN_MAX ? left : EXIT_RUN_MAX;
}

/* No userfaultfd can watch a guest_memfd. */
static bool has_uffd(const struct pagemap_region *r)
{
	return r->backing != INFILL_BACKING_GUEST_MEMFD;
}

/*
 * Does a page that cannot be read need its bit?  A userfaultfd's memory has a
 * mark of the kernel's there; a guest_memfd would read as zero without the flag,
 * and for a protected VM KVM would raise SIGBUS, rather than tell the vCPU.
 */
static bool needs_flag(const struct infill_session *s)
{
	for (unsigned i = 0; i < s->pm.header->regions; i++) {
		const struct pagemap_region *r = &s->pm.header->region[i];
		uint64_t end = r->first + r->pages;

		if ((!has_uffd(r) || s->protected) &&
		    pagemap_next(&s->pm, r->first, end, PAGE_POISONED) != end)
			return true;
	}
	return false;
}

/*
 * Nothing is missing: from now on the kernel alone gives the guest what it
 * needs, and huge pages can form.  Pages that read as zero need no install.
 * Memory of a cache stays registered: a page that the VMM gives up would
 * otherwise show the image again.
 */
static int make_independent(struct infill_session *s)
{
	if (s->cache)
		return 0;
	for (unsigned i = 0; i < s->pm.header->regions; i++) {
		const struct pagemap_region *r = &s->pm.header->region[i];

		/* Fails where the VMM has unmapped it, and then there is nothing to do. */
		if (has_uffd(r))
			uffd_unregister(s->uffd, r->hva, r->length);
	}
	if (s->userfault && needs_flag(s))
		return 0;
	s->pm.header->independent = 1;
	if (s->channels)
		channels_resident(s->channels);
	/*
	 * Last: a change of a memslot waits for vCPUs that are in KVM, and one that
	 * waits there for the userfaultfd would wait for this thread.
	 */
	return s->userfault ? userfault_disable(s->userfault) : 0;
}

bool session_independent(const struct infill_session *s)
{
	return atomic_load_explicit(&s->pm.header->independent, memory_order_acquire);
}

void session_check_resident(struct infill_session *s)
{
	int err;

	if (pagemap_missing(&s->pm) || s->resident || s->over)
		return;
	/* What is counted wrongly must not make a guest read zeros. */
	if (!pagemap_settled(&s->pm)) {
		session_fail(s, err_set(-EPROTO, "state file: pages are missing that were counted "
						 "as there: a defect of infill"));
		return;
	}
	s->resident = true;
	err = make_independent(s);
	if (err) {
		session_fail(s, err);
		return;
	}
	if (stats_mark(&s->pm.stats->resident_ns, stats_now()))
		timeline_mark(s->timeline, stats_now(), "resident");
	session_event(s, INFILL_EVENT_RESIDENT, 0, 0, 0, NULL);
	session_reach(s, INFILL_WAIT_RESIDENT);
}

/* ---- recording ----------------------------------------------------------- */

/* Is PAGE touched for the first time?  Under the record_lock. */
static bool first_touch(struct infill_session *s, uint64_t page)
{
	const uint64_t bit = 1ull << page % 64;
	bool first = !s->recorded || !(s->recorded[page / 64] & bit);

	if (s->recorded)
		s->recorded[page / 64] |= bit;
	return first;
}

/* What an earlier process has recorded.  Without memory pages may be named twice: harmless. */
static void begin_recording(struct infill_session *s)
{
	const struct recording *rec = s->pm.recording;
	uint64_t page;

	s->recorded = calloc(s->pm.header->pages / 64 + 1, sizeof(*s->recorded));
	for (uint64_t i = 0; i < rec->count; i++)
		if (pagemap_at(&s->pm, (uint64_t)rec->page[i] * IMAGE_PAGE, &page))
			first_touch(s, page);
}

bool session_record(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		    uint64_t now)
{
	struct recording *rec = s->pm.recording;
	bool first;

	/* With KVM Userfault vCPUs record, and the session's thread what KVM itself touched. */
	pthread_mutex_lock(&s->record_lock);
	first = !atomic_load_explicit(&rec->first_ns, memory_order_relaxed);
	if (first_touch(s, page))
		recording_add(rec, (uint32_t)(pagemap_offset(r, page) / IMAGE_PAGE),
			      (uint32_t)(r->page_size / IMAGE_PAGE), now);
	pthread_mutex_unlock(&s->record_lock);
	return first;
}

static void save_recording(struct infill_session *s)
{
	const struct recording *r = s->pm.recording;
	int err = trace_save(s->record_path, &s->pm.header->image, (const uint32_t *)r->page,
			     r->count);

	session_event(s, err ? INFILL_EVENT_TRACE_FAILED : INFILL_EVENT_RECORDED, err, 0,
		      r->count * IMAGE_PAGE, err ? err_text() : NULL);
	session_reach(s, INFILL_WAIT_RECORDED);
}

static void *save_thread(void *arg)
{
	save_recording(arg);
	return NULL;
}

static void close_recording(struct infill_session *s)
{
	s->recording = false;
	timeline_mark(s->timeline, stats_now(), "recorded");
	/* Writing waits for the disk, and faults must not. */
	s->saving = !thread_new(&s->save_thread, save_thread, s);
	if (!s->saving)
		save_recording(s);
}

uint64_t session_recording(struct infill_session *s, uint64_t now)
{
	const struct recording_limits limits = {
		.settle_ns = s->options.record_settle_ns,
		.time_ns = s->options.record_time_ns,
		.pages = s->options.record_pages,
	};

	uint64_t next = 0;

	pthread_mutex_lock(&s->record_lock);
	if (!recording_over(s->pm.recording, &limits, now))
		next = recording_next(s->pm.recording, &limits, now);
	pthread_mutex_unlock(&s->record_lock);
	if (s->pm.recording->closed)
		close_recording(s);
	return next;
}

/* ---- starting ------------------------------------------------------------ */

static int check_options(const struct infill_session_options *o)
{
	if (o->fill > INFILL_FILL_NONE)
		return err_set(-EINVAL, "session: fill is %u: use INFILL_FILL_*", o->fill);
	if (o->trace && o->record)
		return err_set(-EINVAL, "session: a trace is either recorded or replayed, not both");
	if (o->reserved_flags)
		return err_set(-EINVAL, "session: reserved_flags is %u: it must be 0",
			       o->reserved_flags);
	if (o->flags & ~INFILL_SESSION_PREFAULT)
		return err_set(-EINVAL, "session: flags are 0x%x: use INFILL_SESSION_*", o->flags);
	if (o->record_pages > RECORD_PAGES_MAX)
		return err_set(-EINVAL, "session: record_pages is %llu: %u at most",
			       (unsigned long long)o->record_pages, RECORD_PAGES_MAX);
	return 0;
}

static int check_memory(const struct infill_memory *memory, const struct infill_image *image,
			bool cache, bool vm)
{
	if (!memory->count)
		return err_set(-EINVAL, "memory: has no region");
	for (unsigned i = 0; i < memory->count; i++) {
		const struct infill_region *r = &memory->region[i];

		if (r->offset > infill_image_bytes(image) ||
		    r->length > infill_image_bytes(image) - r->offset)
			return err_set(-ERANGE,
				       "%s: has %llu bytes, but a region of %llu bytes begins at %llu: "
				       "it is not the memory file of this VM",
				       image_name(image),
				       (unsigned long long)infill_image_bytes(image),
				       (unsigned long long)r->length, (unsigned long long)r->offset);
		if (!vm && r->backing == INFILL_BACKING_GUEST_MEMFD)
			return err_set(-EINVAL, "memory: guest_memfd needs KVM Userfault: use "
						"infill_session_start_vm()");
		if (cache && r->page_size != SMALL_PAGE)
			return err_set(-EINVAL, "memory: a cache needs regions of 4 KiB pages");
	}
	return 0;
}

static void set_defaults(struct infill_session_options *o)
{
	if (!o->record_settle_ns)
		o->record_settle_ns = RECORD_SETTLE_NS;
	if (!o->record_time_ns)
		o->record_time_ns = RECORD_TIME_NS;
	if (!o->record_pages)
		o->record_pages = RECORD_PAGES;
}

static int copy_fd(int fd)
{
	return fd > 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
}

/* Take copies of all that the options point to. */
static int own_options(struct infill_session *s)
{
	struct infill_session_options *o = &s->options;

	s->cache = o->cache;
	s->watch_fd = copy_fd(o->watch_fd);
	if (o->watch_fd > 0 && s->watch_fd < 0)
		return err_set(-errno, "session: watch_fd: %m");
	if (o->timeline_fd > 0) {
		int err = timeline_new(&s->timeline, o->timeline_fd);

		if (err)
			return err;
	}
	if (o->record) {
		s->record_path = strdup(o->record);
		if (!s->record_path)
			return err_set(-ENOMEM, "session: %m");
	}
	o->record = NULL;
	return 0;
}

/* A trace that cannot be used is reported and ignored. */
static void load_trace(struct infill_session *s)
{
	int err;

	if (!s->options.trace)
		return;
	err = trace_load(&s->trace, s->options.trace, &s->pm.header->image);
	s->options.trace = NULL;
	if (!err)
		err = trace_index_new(&s->trace_index, &s->trace);
	if (err)
		session_event(s, INFILL_EVENT_TRACE_IGNORED, err, 0, 0, err_text());
}

void session_free(struct infill_session *s)
{
	if (s->saving)
		pthread_join(s->save_thread, NULL);
	timeline_free(s->timeline);
	trace_free(&s->trace);
	trace_index_free(&s->trace_index);
	vcpu_free_retired(s);
	channels_free(s->channels);
	userfault_free(s->userfault);
	pagemap_close(&s->pm);
	if (s->uffd >= 0)
		close(s->uffd);
	if (s->watch_fd >= 0)
		close(s->watch_fd);
	if (s->pagemap >= 0)
		close(s->pagemap);
	free(s->recorded);
	free(s->record_path);
	free(s->waiting);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->record_lock);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int session_new(struct infill_session **session, struct infill_image *image,
		const struct infill_session_options *options)
{
	struct infill_session *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;
	int err;

	if (!s)
		return err_set(-ENOMEM, "session: %m");
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->record_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
	s->image = image;
	s->uffd = s->watch_fd = s->pagemap = s->pm.fd = -1;
	s->ready_tail = &s->ready;
	err = OPTIONS_COPY(&s->options, options, infill_session_options);
	if (!err)
		err = check_options(&s->options);
	if (!err) {
		set_defaults(&s->options);
		err = own_options(s);
	}
	if (err)
		session_free(s);
	else
		*session = s;
	return err;
}

/* The state is mapped: begin to count, to record, to replay. */
static void begin(struct infill_session *s, bool resumed)
{
	struct stats *st = s->pm.stats;
	const struct recording *r = s->pm.recording;

	s->resident = s->pm.header->independent;
	stats_mark(&st->start_ns, stats_now());
	stats_add(&st->resumes, resumed);
	timeline_mark(s->timeline, stats_now(), resumed ? "resumed" : "start");
	s->recording = s->record_path && !r->closed;
	if (s->recording)
		begin_recording(s);
	load_trace(s);
	if (s->record_path ? r->closed : 1)
		s->reached |= 1u << INFILL_WAIT_RECORDED;
	if (!s->trace.count || s->options.fill == INFILL_FILL_NONE)
		s->reached |= 1u << INFILL_WAIT_TRACE;
	if (s->resident)
		s->reached |= 1u << INFILL_WAIT_RESIDENT;
}

static bool has_huge_pages(const struct pagemap *pm)
{
	for (unsigned i = 0; i < pm->header->regions; i++)
		if (pm->header->region[i].backing == INFILL_BACKING_HUGETLB)
			return true;
	return false;
}

/*
 * Everything from an open userfaultfd (owned by S) and a state file on.  OWN:
 * the memory is this process's.  VM_FD: of its VM, with KVM Userfault; else -1.
 * PART: of a VM with KVM Userfault in another process; else NULL.
 */
static int open_session(struct infill_session *s, struct infill_pool *pool,
			const struct infill_memory *memory, int state_fd, bool own, int vm_fd,
			const struct userfault_part *part)
{
	struct infill_identity image;
	bool resumed;
	int err;

	infill_image_identity(s->image, &image);
	err = infill_image_check(s->image);
	if (!err)
		err = pagemap_open(&s->pm, state_fd, memory, &image,
				   s->record_path ? s->options.record_pages : 0, &resumed);
	if (err)
		return err;
	if (has_huge_pages(&s->pm))
		s->pagemap = own ? PRESENT_OWN : present_open(s->watch_fd);
	if (resumed && !s->pm.header->record_capacity) { /* it was not recorded */
		free(s->record_path);
		s->record_path = NULL;
	}
	begin(s, resumed);
	err = vm_fd >= 0 ? userfault_new(&s->userfault, vm_fd, -1, memory, &s->pm) : 0;
	if (!err && part)
		err = userfault_adopt(&s->userfault, &s->pm, part);
	return err ? err : pool_add(pool, s);
}

int session_new_state(void)
{
	int fd = memfd_create("infill-state", MFD_CLOEXEC);

	return fd < 0 ? err_set(-errno, "state file: memfd_create: %m") : fd;
}

/* OWN: the memory is this process's. */
static int adopt(struct infill_session **session, struct infill_pool *pool,
		 const struct infill_memory *memory, struct infill_image *image, int uffd,
		 int state_fd, bool own, const struct infill_session_options *options)
{
	struct infill_session *s = NULL;
	int err = session_new(&s, image, options);

	if (err)
		return err;
	if (memory)
		err = check_memory(memory, image, s->cache != NULL, false);
	if (!err) {
		s->uffd = uffd_adopt(uffd);
		err = s->uffd < 0 ? s->uffd : 0;
	}
	if (!err)
		err = open_session(s, pool, memory, state_fd, own, -1, NULL);
	if (err)
		session_free(s);
	else
		*session = s;
	return err;
}

int infill_session_adopt_state(struct infill_session **session, struct infill_pool *pool,
			       const struct infill_memory *memory, struct infill_image *image,
			       int uffd, int state_fd, const struct infill_session_options *options)
{
	return adopt(session, pool, memory, image, uffd, state_fd, false, options);
}

int infill_session_resume(struct infill_session **session, struct infill_pool *pool,
			  struct infill_image *image, int uffd, int state_fd,
			  const struct infill_session_options *options)
{
	return infill_session_adopt_state(session, pool, NULL, image, uffd, state_fd, options);
}

static int adopt_new(struct infill_session **session, struct infill_pool *pool,
		     const struct infill_memory *memory, struct infill_image *image, int uffd,
		     bool own, const struct infill_session_options *options)
{
	int state_fd = session_new_state(), err;

	if (state_fd < 0)
		return state_fd;
	err = adopt(session, pool, memory, image, uffd, state_fd, own, options);
	close(state_fd);
	return err;
}

int infill_session_adopt(struct infill_session **session, struct infill_pool *pool,
			 const struct infill_memory *memory, struct infill_image *image, int uffd,
			 const struct infill_session_options *options)
{
	return adopt_new(session, pool, memory, image, uffd, false, options);
}

static int register_all(int uffd, const struct infill_memory *memory, bool minor)
{
	int err = 0;

	for (unsigned i = 0; i < memory->count && !err; i++)
		err = uffd_register(uffd, memory->region[i].hva, memory->region[i].length, minor);
	return err;
}

int infill_session_start(struct infill_session **session, struct infill_pool *pool,
			 const struct infill_memory *memory, struct infill_image *image,
			 const struct infill_session_options *options)
{
	bool minor = options && options->size > offsetof(struct infill_session_options, cache) &&
		     options->cache;
	int uffd, err = check_memory(memory, image, minor, false);

	if (err)
		return err;
	uffd = infill_host_userfaultfd(UFFD_FEATURE_EVENT_REMOVE |
				       (minor ? UFFD_FEATURE_MINOR_SHMEM : 0));
	if (uffd < 0)
		return uffd;
	err = register_all(uffd, memory, minor);
	if (!err)
		err = adopt_new(session, pool, memory, image, uffd, true, options);
	close(uffd);
	return err;
}

/* KVM's and this process's own accesses fault there. */
int session_watch(struct infill_session *s, const struct infill_memory *memory)
{
	int err = 0;

	for (unsigned i = 0; i < memory->count && !err; i++) {
		const struct infill_region *r = &memory->region[i];

		if (r->backing == INFILL_BACKING_GUEST_MEMFD)
			continue;
		if (s->uffd < 0) {
			int uffd = infill_host_userfaultfd(0);

			if (uffd < 0)
				return uffd;
			s->uffd = uffd;
		}
		err = uffd_register(s->uffd, r->hva, r->length, false);
	}
	return err;
}

static int start_vm(struct infill_session *s, struct infill_pool *pool, int vm_fd,
		    const struct infill_memory *memory)
{
	int state_fd, err = userfault_check(vm_fd);

	if (!err)
		err = check_memory(memory, s->image, false, true);
	s->protected = userfault_protected(vm_fd);
	if (!err && s->protected)
		err = userfault_check_protected(memory);
	if (!err && s->cache)
		err = err_set(-EINVAL, "session: a cache needs a userfaultfd, use "
				       "infill_session_start()");
	if (!err)
		err = session_watch(s, memory);
	if (err)
		return err;
	state_fd = session_new_state();
	if (state_fd < 0)
		return state_fd;
	err = open_session(s, pool, memory, state_fd, true, vm_fd, NULL);
	close(state_fd);
	return err;
}

int infill_session_start_vm(struct infill_session **session, struct infill_pool *pool, int vm_fd,
			    const struct infill_memory *memory, struct infill_image *image,
			    const struct infill_session_options *options)
{
	struct infill_session *s = NULL;
	int err = session_new(&s, image, options);

	if (err)
		return err;
	err = start_vm(s, pool, vm_fd, memory);
	if (!err) {
		*session = s;
		return 0;
	}
	/* Memslots that had no flag have none again. */
	if (s->userfault)
		userfault_disable(s->userfault);
	session_free(s);
	return err;
}

/* Everything of FILES but the mappings; S owns a copy of the userfaultfd. */
static int take_files(struct infill_session *s, const struct session_files *files)
{
	s->protected = files->protected;
	if (files->uffd >= 0) {
		s->uffd = uffd_adopt(files->uffd);
		if (s->uffd < 0)
			return s->uffd;
	}
	return channels_new(&s->channels, files->sock, files->channel, files->channels);
}

int session_adopt_userfault(struct infill_session **session, struct infill_pool *pool,
			    const struct infill_memory *memory, struct infill_image *image,
			    const struct session_files *files,
			    const struct infill_session_options *options)
{
	struct infill_session *s = NULL;
	int err = session_new(&s, image, options);

	if (!err)
		err = check_memory(memory, image, s->cache != NULL, true);
	if (!err)
		err = take_files(s, files);
	if (!err)
		err = open_session(s, pool, memory, files->state, false, -1, files->part);
	if (err && !(s && s->userfault))
		userfault_unmap(files->part, memory->count);
	if (err && s)
		session_free(s);
	if (!err)
		*session = s;
	return err;
}

/* ---- any thread ----------------------------------------------------------- */

/* What has been counted, by the session's thread and by vCPUs; freed by the caller. */
static struct stats *sum_stats(const struct infill_session *session)
{
	struct infill_session *s = (struct infill_session *)(uintptr_t)session;
	struct stats *sum = calloc(1, sizeof(*sum));

	if (!sum)
		return NULL;
	stats_sum(sum, s->pm.stats);
	vcpu_add_stats(s, sum);
	stats_add(&sum->removed, s->discarded);
	return sum;
}

int infill_session_state_fd(const struct infill_session *s)
{
	return s->pm.fd;
}

int infill_session_uffd(const struct infill_session *s)
{
	return s->uffd;
}

static struct timespec deadline(int timeout_ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += timeout_ms / 1000;
	t.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (t.tv_nsec >= 1000000000) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000;
	}
	return t;
}

int infill_session_wait(struct infill_session *s, enum infill_wait what, int timeout_ms)
{
	const unsigned end = 1u << INFILL_WAIT_END;
	struct timespec until = deadline(timeout_ms < 0 ? 0 : timeout_ms);
	int err = 0;

	if (what < INFILL_WAIT_TRACE || what > INFILL_WAIT_END)
		return err_set(-EINVAL, "session: wait for %d: use INFILL_WAIT_*", (int)what);
	pthread_mutex_lock(&s->lock);
	while (!(s->reached & (1u << what | end)) && !err)
		err = timeout_ms < 0 ? pthread_cond_wait(&s->changed, &s->lock) :
				       pthread_cond_timedwait(&s->changed, &s->lock, &until);
	if (s->reached & 1u << what)
		err = what == INFILL_WAIT_END ? s->error : 0;
	else if (s->reached & end)
		err = s->error ? s->error : -ECANCELED;
	else
		err = -ETIMEDOUT;
	if (err)
		err_set(err, "%s", s->error ? s->text : err == -ETIMEDOUT ? "session: timed out" :
									 "session: ended before");
	pthread_mutex_unlock(&s->lock);
	return err;
}

int infill_session_mark(struct infill_session *s, enum infill_mark mark)
{
	uint64_t now = stats_now();
	bool restored = mark == INFILL_MARK_RESTORED;

	if (!restored && mark != INFILL_MARK_FIRST_WORK)
		return err_set(-EINVAL, "session: mark %d: use INFILL_MARK_*", (int)mark);
	stats_mark(restored ? &s->pm.stats->restored_ns : &s->pm.stats->first_work_ns, now);
	return 0;
}

int infill_session_counters(const struct infill_session *s, struct infill_counters *counters)
{
	size_t size = counters->size;
	struct stats *sum = s->userfault ? sum_stats(s) : s->pm.stats;
	int err = sum ? stats_read(sum, counters) : err_set(-ENOMEM, "session: %m");

	if (s->userfault)
		free(sum);

	if (!err && size >= offsetof(struct infill_counters, faults))
		counters->pages = s->pm.header->pages;
	if (!err && size >= offsetof(struct infill_counters, missing) + sizeof(counters->missing))
		counters->missing = s->remote ? userfault_missing_pages(s->userfault) :
						pagemap_missing(&s->pm);
	return err;
}

int infill_session_write_latency(const struct infill_session *s, int fd)
{
	struct stats *sum = s->userfault ? sum_stats(s) : s->pm.stats;
	int err = sum ? histogram_write(&sum->latency, fd) : err_set(-ENOMEM, "session: %m");

	if (s->userfault)
		free(sum);
	return err;
}

int infill_session_error(const struct infill_session *session, const char **text)
{
	struct infill_session *s = (struct infill_session *)(uintptr_t)session;
	int err;

	pthread_mutex_lock(&s->lock);
	err = s->error;
	if (text)
		*text = s->text; /* set once, before `error` */
	pthread_mutex_unlock(&s->lock);
	return err;
}

void infill_session_stop(struct infill_session *s)
{
	if (!s)
		return;
	if (s->remote)
		remote_session_stop(s);
	else
		pool_remove(s);
	if (s->recording)
		save_recording(s);
	session_free(s);
}
