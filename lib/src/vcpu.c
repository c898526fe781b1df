/* SPDX-License-Identifier: MIT */
/*
 * vcpu.c: an exit of KVM Userfault, from the missing page to the next KVM_RUN.
 * Internal but for the functions of infill.h.
 *
 * The page is claimed first, then read: of several vCPUs that miss it one
 * fills, and the others wait for that one.  A claim is given back when the
 * page cannot be filled, so that nobody waits for ever.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "err.h"
#include "image.h"
#include "install.h"
#include "kvm_api.h"
#include "pool.h"
#include "prefault.h"
#include "remote_session.h"
#include "uffd.h"
#include "userfault.h"
#include "vcpu.h"

#define NAP_NS 1000000 /* between two tries to install a page */

/*
 * Pages, from which on it pays.  By bench/userfault, tables in bench/README.md:
 * mapping 4 of them costs 8 % on arm64-vhe and gains 1 % on x86-npt, 8 gains 4 %,
 * 16 gains 10 %.
 */
#define PREFAULT_LEAST 8

struct infill_vcpu {
	struct infill_session *session;
	struct infill_vcpu *next; /* in the session's list, under its lock */
	int fd;          /* -1: none: it is for infill_session_fill() */
	const struct kvm_run *run; /* of the exit that is handled */
	unsigned number; /* from 1 on; 0: it is for infill_session_fill() */
	uint64_t wanted; /* ... pages from the one asked for on; 0: that is not known */
	bool prefault;
	char *buffer;
	size_t buffer_bytes;
	struct streams streams;
	struct stats stats;
};

/* A run of pages that this thread has claimed. */
struct claim {
	const struct pagemap_region *region;
	uint64_t page, count;
};

/* A part of the trace that a prefault has taken, and did not come to. */
struct prefault_rest {
	struct prefault_rest *next;
	struct trace_run run;
};

/* ---- how many pages for an exit ------------------------------------------ */

static bool is_recording(const struct infill_session *s)
{
	return s->record_path && !atomic_load_explicit(&s->pm.recording->closed,
						       memory_order_relaxed);
}

static uint64_t window(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page)
{
	uint64_t room = r->first + r->pages - page, want, trace;

	if (v->wanted) {
		want = v->buffer_bytes / r->page_size;
		want = want < v->wanted ? want : v->wanted;
		return want < room ? want : room;
	}
	/* A recording wants to see every first touch. */
	if (r->page_size != SMALL_PAGE || is_recording(v->session))
		return 1;
	want = streams_window(&v->streams, page, EXIT_RUN_MAX);
	trace = session_trace_window(v->session, r, page);
	want = want > trace ? want : trace;
	return want < room ? want : room;
}

/* ---- claims ----------------------------------------------------------------- */

int vcpu_settle(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
		uint64_t count, enum page_state to)
{
	int err = pagemap_move(&s->pm, page, count, to);

	if (to == PAGE_MISSING || to == PAGE_POISONED)
		userfault_wake(s->userfault, page, count);
	else
		userfault_clear(s->userfault, r, page, count);
	/* Nothing was installed: a thread that waits for the kernel faults again, and is served. */
	if (to != PAGE_PRESENT && s->uffd >= 0)
		uffd_wake(s->uffd, pagemap_hva(r, page), count * r->page_size);
	if (!pagemap_missing(&s->pm) && !s->pm.header->independent)
		pool_wake(s);
	return err;
}

/* The first COUNT pages of C are settled: they are the caller's no more. */
static void settle(struct infill_vcpu *v, struct claim *c, uint64_t count, enum page_state to)
{
	vcpu_settle(v->session, c->region, c->page, count, to);
	c->page += count;
	c->count -= count;
}

static void give_back(struct infill_vcpu *v, struct claim *c, uint64_t from)
{
	struct claim rest = { .region = c->region, .page = c->page + from, .count = c->count - from };

	if (rest.count)
		settle(v, &rest, rest.count, PAGE_MISSING);
	c->count = from;
}

static int fail(struct infill_vcpu *v, struct claim *c, int err)
{
	give_back(v, c, 0);
	session_fail(v->session, err);
	return err;
}

/* ---- reading ------------------------------------------------------------------ */

static int read_claim(struct infill_vcpu *v, const struct claim *c, void *to)
{
	struct infill_session *s = v->session;
	uint64_t offset = pagemap_offset(c->region, c->page);
	size_t length = c->count * c->region->page_size;
	int err = image_read_now(s->image, offset, to, length);

	if (err == -EAGAIN) { /* only this vCPU waits for the disk */
		stats_add(&v->stats.slow_reads, 1);
		err = image_read(s->image, offset, to, length);
	}
	if (!err)
		stats_add(&v->stats.read_bytes, length);
	return err;
}

/*
 * Where to read C to.  The guest touches it, now or soon, so it gets memory whatever
 * is in it: it is read where it belongs if it may be, which takes a call and a copy less.
 */
static char *place_for(struct infill_vcpu *v, const struct claim *c)
{
	if (userfault_in_place(c->region))
		return userfault_target(v->session->userfault, c->region, c->page);
	return v->buffer;
}

/* One page cannot be read.  Its bit stays set: every vCPU that needs it is told. */
static int poison(struct infill_vcpu *v, struct claim *c, int error)
{
	const struct pagemap_region *r = c->region;
	uint64_t page = c->page, done;

	/* What KVM itself reads there must not be zero either. */
	install_pages(v->session, r, page, 1, NULL, HOW_POISON, &done);
	settle(v, c, 1, PAGE_POISONED);
	install_count(v->session, &v->stats, r, page, 1, HOW_POISON, WHY_DEMAND);
	return install_poisoned(v->session, r, page, error);
}

/* ---- installing ----------------------------------------------------------------- */

/* The run of pages at the beginning of C, of DATA, that are all zero or all not. */
static uint64_t alike(const struct claim *c, const char *data, bool *zero)
{
	const uint64_t size = c->region->page_size;
	uint64_t n = 1;

	*zero = image_is_zero(data, size);
	while (n < c->count && image_is_zero(data + n * size, size) == *zero)
		n++;
	return n;
}

/*
 * The first page of C stopped an install with ERR.  0: go on.  What may pass is
 * waited for here, on the thread that needs the page.
 */
static int settle_odd(struct infill_vcpu *v, struct claim *c, int err, uint64_t *since)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	enum page_state to = install_outcome(err);

	if (to != PAGE_FILLING) {
		stats_add(&v->stats.duplicates, to == PAGE_PRESENT);
		settle(v, c, 1, to);
		/* Its event was perhaps read while the page was ours, and then left to us. */
		if (to == PAGE_PRESENT && v->session->uffd >= 0)
			uffd_wake(v->session->uffd, pagemap_hva(c->region, c->page - 1),
				  c->region->page_size);
		return 0;
	}
	stats_add(&v->stats.retries, err == -EAGAIN);
	if ((err != -EAGAIN && err != -ENOMEM) || !install_may_pass(since))
		return install_failed(c->region, err);
	nanosleep(&nap, NULL);
	return 0;
}

static int install_claim(struct infill_vcpu *v, struct claim *c)
{
	const char *data = v->buffer;
	uint64_t since = 0, most = c->count;
	int err = 0;

	while (c->count && !err) {
		uint64_t before = c->page, done, count;
		enum how how;
		bool zero;

		count = alike(c, data, &zero);
		count = count < most ? count : most;
		how = zero ? HOW_ZERO : HOW_COPY;
		err = install_pages(v->session, c->region, c->page, count, data, how, &done);
		if (done) {
			install_count(v->session, &v->stats, c->region, c->page, done, how, WHY_DEMAND);
			settle(v, c, done, PAGE_PRESENT);
			since = 0;
		}
		if (install_shorter(err, count - done)) {
			most = install_shorter(err, count - done);
			err = 0;
		} else if (err) {
			err = settle_odd(v, c, err, &since);
		}
		data += (c->page - before) * c->region->page_size;
	}
	return err ? fail(v, c, err) : 0;
}

/* C was read to TO. */
static int install_read(struct infill_vcpu *v, struct claim *c, const char *to)
{
	if (to == v->buffer)
		return install_claim(v, c);
	install_count(v->session, &v->stats, c->region, c->page, c->count, HOW_COPY, WHY_DEMAND);
	settle(v, c, c->count, PAGE_PRESENT);
	return 0;
}

/* ---- an exit ---------------------------------------------------------------------- */

/* Map what was filled behind PAGE, which the guest asked for and KVM_RUN maps itself. */
static void prefault(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page,
		     uint64_t count)
{
	uint64_t done;
	int err;

	if (!v->prefault || count < PREFAULT_LEAST)
		return;
	/* What it says of memory that a protected VM cannot be given KVM_RUN says, too. */
	err = prefault_range(v->fd, r->gpa + (page + 1 - r->first) * r->page_size,
			     (count - 1) * r->page_size, v->session->protected, &done);
	/* A limit may be raised, and a page that is broken says nothing of others. */
	if (err == -EOPNOTSUPP)
		v->prefault = false;
	stats_add(&v->stats.prefault_bytes, done);
}

/*
 * Fill those of WANT pages from PAGE on that are missing, up to one that is not;
 * *COUNT: how many.  -EAGAIN: PAGE is not missing.
 */
static int fill_run(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page,
		    uint64_t want, uint64_t *count)
{
	struct claim c = { .region = r, .page = page };
	char *to;
	int err;

	c.count = *count = pagemap_claim(&v->session->pm, page, want);
	if (!c.count)
		return -EAGAIN;
	/* The first touch begins the window, which the session's thread closes. */
	if (v->fd >= 0 && is_recording(v->session) &&
	    session_record(v->session, r, page, stats_now()))
		pool_wake(v->session);
	to = place_for(v, &c);
	err = read_claim(v, &c, to);
	if (err && err != -ESTALE && (c.count > 1 || to != v->buffer)) {
		/* Find out whether it is this page that cannot be read, or has no memory. */
		give_back(v, &c, 1);
		*count = 1;
		to = v->buffer;
		err = read_claim(v, &c, to);
	}
	if (err == -ESTALE)
		return fail(v, &c, err_set(err, "%s: changed while it was served",
					   image_name(v->session->image)));
	if (err)
		return poison(v, &c, err);
	return install_read(v, &c, to);
}

/*
 * Fill PAGE, which was missing, and what is wanted with it.  What is there
 * already parts that, and does not end it.  -EAGAIN: PAGE is somebody else's.
 */
static int fill(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page)
{
	uint64_t end = page + window(v, r, page), at, filled, count;
	int err = fill_run(v, r, page, end - page, &count);

	if (err)
		return err;
	at = filled = page + count;
	while (at < end && !session_over(v->session)) {
		/* What fails here is told to who needs it. */
		err = fill_run(v, r, at, end - at, &count);
		at += count ? count : 1;
		filled = err ? filled : at;
	}
	prefault(v, r, page, filled - page);
	return 0;
}

static int ended_with(struct infill_session *s)
{
	const char *text;
	int err = infill_session_error(s, &text);

	return err ? err_set(err, "%s", text) : err_set(-ECANCELED, "session: is being stopped");
}

/* The pager is another process: it fills. */
static int ask_pager(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page)
{
	const volatile uint8_t *stop = v->run ? &v->run->immediate_exit : NULL;
	uint64_t count;
	int err = remote_session_page(v->session, v->number, r, page, stop, &count);

	if (!err)
		prefault(v, r, page, count);
	return err;
}

/* Return when PAGE is in memory and its bit is clear, or with why it cannot be. */
static int have_page(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page)
{
	struct infill_session *s = v->session;
	int err;

	if (s->remote)
		return ask_pager(v, r, page);
	for (;;) {
		switch (pagemap_get(&s->pm, page)) {
		case PAGE_PRESENT:
		case PAGE_REMOVED: /* who filled it is about to do the same */
			userfault_clear(s->userfault, r, page, 1);
			return 0;
		case PAGE_POISONED:
			return err_set(-EHWPOISON, "%s: offset %llu: could not be read",
				       image_name(s->image),
				       (unsigned long long)pagemap_offset(r, page));
		case PAGE_FILLING:
			userfault_wait(s->userfault, &s->pm, page);
			break;
		default:
			if (session_over(s))
				return ended_with(s);
			err = fill(v, r, page);
			if (err && err != -EAGAIN)
				return err;
		}
	}
}

int infill_vcpu_exit(struct infill_vcpu *v, const struct kvm_run *run)
{
	const struct kvm_api_memory_fault *f = kvm_api_memory_fault(run);
	struct infill_session *s = v->session;
	const struct pagemap_region *r;
	uint64_t page, since;
	int err;

	if (run->exit_reason != KVM_EXIT_MEMORY_FAULT ||
	    !(f->flags & KVM_MEMORY_EXIT_FLAG_USERFAULT))
		return 1;
	r = pagemap_find_gpa(&s->pm, f->gpa, &page);
	if (!r)
		return err_set(-EFAULT, "userfault: an exit for 0x%llx, which is in none of the "
					"session's memslots", (unsigned long long)f->gpa);
	v->run = run;
	since = stats_now();
	stats_add(&v->stats.faults, 1);
	err = have_page(v, r, page);
	if (!err)
		histogram_record(&v->stats.latency, stats_now() - since);
	return err;
}

/* ---- their lives ------------------------------------------------------------------- */

static uint64_t largest_page(const struct pagemap *pm)
{
	uint64_t most = EXIT_RUN_MAX * SMALL_PAGE;

	for (unsigned i = 0; i < pm->header->regions; i++)
		if (pm->header->region[i].page_size > most)
			most = pm->header->region[i].page_size;
	return most;
}

static int vcpu_new(struct infill_vcpu **vcpu, struct infill_session *s, int fd)
{
	struct infill_vcpu *v;

	*vcpu = NULL;
	if (!s->userfault)
		return err_set(-EINVAL, "vcpu: the session was not started by "
					"infill_session_start_vm() or "
					"infill_session_connect_vm()");
	v = calloc(1, sizeof(*v));
	if (v) {
		v->buffer_bytes = largest_page(&s->pm);
		v->buffer = aligned_alloc(SMALL_PAGE, v->buffer_bytes);
	}
	if (!v || !v->buffer) {
		free(v);
		return err_set(-ENOMEM, "vcpu: %m");
	}
	v->session = s;
	v->fd = fd;
	v->prefault = fd >= 0 && s->options.flags & INFILL_SESSION_PREFAULT;
	pthread_mutex_lock(&s->lock);
	v->next = s->vcpus;
	s->vcpus = v;
	v->number = fd < 0 ? 0 : ++s->vcpus_made;
	pthread_mutex_unlock(&s->lock);
	*vcpu = v;
	return 0;
}

int infill_vcpu_new(struct infill_vcpu **vcpu, struct infill_session *s, int vcpu_fd)
{
	if (vcpu_fd < 0)
		return err_set(-EBADF, "vcpu: fd is %d", vcpu_fd);
	return vcpu_new(vcpu, s, vcpu_fd);
}

void infill_vcpu_free(struct infill_vcpu *v)
{
	struct infill_session *s;
	struct infill_vcpu **at;

	if (!v)
		return;
	s = v->session;
	pthread_mutex_lock(&s->lock);
	for (at = &s->vcpus; *at != v; at = &(*at)->next)
		;
	*at = v->next;
	if (!s->retired) { /* the first that goes keeps the sum */
		s->retired = v;
		v->next = NULL;
	} else {
		stats_sum(&s->retired->stats, &v->stats);
	}
	pthread_mutex_unlock(&s->lock);
	free(v->buffer);
	v->buffer = NULL;
	if (s->retired != v)
		free(v);
}

void vcpu_add_stats(struct infill_session *s, struct stats *to)
{
	pthread_mutex_lock(&s->lock);
	for (struct infill_vcpu *v = s->vcpus; v; v = v->next)
		stats_sum(to, &v->stats);
	if (s->retired)
		stats_sum(to, &s->retired->stats);
	pthread_mutex_unlock(&s->lock);
}

void vcpu_free_retired(struct infill_session *s)
{
	struct prefault_rest *rest, *next;

	for (rest = s->prefault_rest; rest; rest = next) {
		next = rest->next;
		free(rest);
	}
	free(s->retired);
}

/* ---- ahead of a vCPU --------------------------------------------------------------- */

int infill_session_fill(struct infill_session *s, uint64_t gpa, uint64_t length)
{
	struct infill_vcpu *v;
	uint64_t end, page;
	int err;

	if (!length || __builtin_add_overflow(gpa, length, &end))
		return err_set(-EINVAL, "session: fill 0x%llx bytes at 0x%llx: no such range",
			       (unsigned long long)length, (unsigned long long)gpa);
	err = vcpu_new(&v, s, -1);
	while (!err && gpa < end) {
		const struct pagemap_region *r = pagemap_find_gpa(&s->pm, gpa, &page);

		if (!r) {
			err = err_set(-EFAULT, "session: fill 0x%llx: is in none of the memslots",
				      (unsigned long long)gpa);
			break;
		}
		v->wanted = (end - gpa + gpa % r->page_size + r->page_size - 1) / r->page_size;
		err = have_page(v, r, page);
		gpa = r->gpa + (page - r->first + 1) * r->page_size;
	}
	infill_vcpu_free(v);
	return err;
}

/* ---- the trace, before a vCPU runs -------------------------------------------------- */

/* What another call has left over first. */
static bool take_run(struct infill_session *s, struct trace_run *run)
{
	struct prefault_rest *rest;
	size_t next;

	pthread_mutex_lock(&s->lock);
	rest = s->prefault_rest;
	if (rest)
		s->prefault_rest = rest->next;
	pthread_mutex_unlock(&s->lock);
	if (rest) {
		*run = rest->run;
		free(rest);
		return true;
	}
	next = atomic_fetch_add_explicit(&s->prefault_next, 1, memory_order_relaxed);
	if (next < s->trace.count)
		*run = s->trace.run[next];
	return next < s->trace.count;
}

/* For a later call.  If there is no memory for that the guest maps it by faults. */
static void leave_run(struct infill_session *s, const struct trace_run *run)
{
	struct prefault_rest *rest = run->length ? malloc(sizeof(*rest)) : NULL;

	if (!rest)
		return;
	rest->run = *run;
	pthread_mutex_lock(&s->lock);
	rest->next = s->prefault_rest;
	s->prefault_rest = rest;
	pthread_mutex_unlock(&s->lock);
}

/* RUN is done with up to byte END of the image, which may be before or behind it. */
static void pass(struct trace_run *run, uint64_t end)
{
	uint64_t bytes = end > run->offset ? end - run->offset : 0;

	bytes = bytes < run->length ? bytes : run->length;
	run->offset += bytes;
	run->length -= bytes;
}

/*
 * Is PAGE there to be mapped?  One that was given up is not, as that would take
 * memory again.  A protected VM gives nothing up: see fill_none().
 */
static bool can_map(const struct infill_session *s, uint64_t page)
{
	enum page_state state = pagemap_get(&s->pm, page);

	return state == PAGE_PRESENT || (state == PAGE_REMOVED && s->protected);
}

/* The pages from PAGE on, in which RUN begins, that RUN has in R and that can be mapped. */
static uint64_t count_to_map(const struct infill_session *s, const struct pagemap_region *r,
			     uint64_t page, const struct trace_run *run)
{
	uint64_t last = run->offset + run->length - 1, end = r->first + r->pages, n = 0;

	if (last - r->offset < r->length)
		end = r->first + (last - r->offset) / r->page_size + 1;
	while (page + n < end && can_map(s, page + n))
		n++;
	return n;
}

/* Map COUNT pages from PAGE on; RUN becomes what is to be mapped after that. */
static int map_pages(struct infill_vcpu *v, const struct pagemap_region *r, uint64_t page,
		     uint64_t count, struct trace_run *run, uint64_t *left)
{
	uint64_t done;
	int err = prefault_range(v->fd, r->gpa + (page - r->first) * r->page_size,
				 count * r->page_size, v->session->protected, &done);
	bool later = err == -EAGAIN || err == -ENOMEM;

	stats_add(&v->stats.prefault_bytes, done);
	*left -= done < *left ? done : *left;
	page += done / r->page_size;
	/* A page that cannot be mapped is passed over. */
	if (done < count * r->page_size && !later)
		page++;
	pass(run, pagemap_offset(r, page));
	return err;
}

/* Map those pages of RUN that are in memory, LEFT bytes at most; RUN becomes what is left. */
static int prefault_run(struct infill_vcpu *v, struct trace_run *run, uint64_t *left)
{
	const struct infill_session *s = v->session;
	int err = 0;

	while (!err && *left && run->length) {
		uint64_t page, count, most;
		const struct pagemap_region *r = pagemap_at(&s->pm, run->offset, &page);

		if (!r) { /* the image has more than the VM */
			pass(run, run->offset + SMALL_PAGE);
			continue;
		}
		count = count_to_map(s, r, page, run);
		if (!count) {
			pass(run, pagemap_offset(r, page + 1));
			continue;
		}
		/* A page at least, so that calls for less come to an end, too. */
		most = *left / r->page_size + (*left % r->page_size != 0);
		err = map_pages(v, r, page, count < most ? count : most, run, left);
	}
	return err;
}

int infill_vcpu_prefault(struct infill_vcpu *v, uint64_t bytes)
{
	struct infill_session *s = v->session;
	uint64_t left = bytes ? bytes : UINT64_MAX;
	struct trace_run run;
	int err = 0;

	while (!err && left && take_run(s, &run)) {
		err = prefault_run(v, &run, &left);
		leave_run(s, &run);
	}
	return err == -EAGAIN ? 0 : err;
}
