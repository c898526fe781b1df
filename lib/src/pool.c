/* SPDX-License-Identifier: MIT */
/*
 * pool.c: the threads that run sessions: one event loop each.  Internal.
 *
 * A round: wait for events; serve those of every session; take the reads that
 * are done; then, for one session in turn, one slice of what no fault asked
 * for.  So a fault waits behind one slice at most, of its own or another VM.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ahead.h"
#include "channel.h"
#include "demand.h"
#include "err.h"
#include "options.h"
#include "pool.h"
#include "session.h"
#include "thread.h"

#define THREADS_MAX 64
#define THREADS_DEFAULT_MAX 16
#define KEPT 4              /* buffers for huge pages */
#define SPINS 64            /* rounds that retry at once after EAGAIN */
#define RETRY_NS 1000000    /* ... and how long to wait between later ones */

/* What an epoll event is about: the low bits of its pointer. */
enum source { SOURCE_UFFD, SOURCE_WATCH, SOURCE_READS, SOURCE_WAKE, SOURCE_CHANNELS,
	      SOURCE_MASK = 7 };

struct command {
	struct command *next;
	struct infill_session *session;
	bool add; /* else remove */
};

struct pool_thread {
	pthread_t thread;
	int epoll;
	int wake; /* eventfd: a command is there */
	struct reader *reader;
	char *buffer; /* SLICE_MAX bytes */
	char *huge;   /* HUGE_PAGE bytes; NULL: not needed yet */
	void *kept[KEPT]; /* buffers of HUGE_PAGE bytes */
	unsigned kept_count;
	struct infill_session *sessions, *turn;
	bool demand; /* this round served events */

	pthread_mutex_t lock; /* commands, stop, load */
	struct command *commands, **commands_tail;
	bool stop;
	unsigned load; /* sessions */
};

struct infill_pool {
	unsigned threads;
	struct pool_thread thread[THREADS_MAX];
};

struct reader *pool_reader(struct pool_thread *t)
{
	return t->reader;
}

char *pool_buffer(struct pool_thread *t, size_t length)
{
	if (length <= SLICE_MAX)
		return t->buffer;
	if (!t->huge)
		t->huge = aligned_alloc(HUGE_PAGE, HUGE_PAGE);
	return t->huge;
}

void *pool_take_buffer(struct pool_thread *t, size_t length)
{
	if (length == HUGE_PAGE && t->kept_count)
		return t->kept[--t->kept_count];
	return aligned_alloc(4096, length);
}

void pool_give_buffer(struct pool_thread *t, void *buffer, size_t length)
{
	if (length == HUGE_PAGE && t->kept_count < KEPT)
		t->kept[t->kept_count++] = buffer;
	else
		free(buffer);
}

static int watch(struct pool_thread *t, int fd, uint32_t events, void *about, enum source source)
{
	struct epoll_event e = {
		.events = events,
		.data.u64 = (uint64_t)(uintptr_t)about | source,
	};

	return epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &e) ? err_set(-errno, "pool: epoll: %m") : 0;
}

/* A pidfd becomes readable when the process ends; a socket hangs up. */
static int watch_vmm(struct pool_thread *t, struct infill_session *s)
{
	struct stat st;

	if (s->watch_fd < 0)
		return 0;
	if (fstat(s->watch_fd, &st))
		return err_set(-errno, "pool: watch_fd: %m");
	return watch(t, s->watch_fd, S_ISSOCK(st.st_mode) ? EPOLLRDHUP : EPOLLIN, s, SOURCE_WATCH);
}

static void let_in(struct pool_thread *t, struct infill_session *s)
{
	int err = s->uffd >= 0 ? watch(t, s->uffd, EPOLLIN, s, SOURCE_UFFD) : 0;

	if (!err && s->channels)
		err = watch(t, channels_fd(s->channels), EPOLLIN, s, SOURCE_CHANNELS);
	if (!err)
		err = watch_vmm(t, s);
	s->next = t->sessions;
	t->sessions = s;
	if (err)
		session_fail(s, err);
	demand_resume(s);
	if (s->channels)
		channels_begin(s->channels);
	if (s->channels && s->resident)
		channels_resident(s->channels);
	session_check_resident(s);
}

/* Its fds leave the epoll set. */
static void stop_watching(struct pool_thread *t, struct infill_session *s)
{
	if (s->uffd >= 0)
		epoll_ctl(t->epoll, EPOLL_CTL_DEL, s->uffd, NULL);
	if (s->channels)
		epoll_ctl(t->epoll, EPOLL_CTL_DEL, channels_fd(s->channels), NULL);
	if (s->watch_fd >= 0)
		epoll_ctl(t->epoll, EPOLL_CTL_DEL, s->watch_fd, NULL);
}

/* A session that is stopped leaves when none of its reads is under way. */
static bool may_leave(const struct infill_session *s)
{
	return s->leaving && !s->under_way;
}

static void let_go(struct pool_thread *t, struct infill_session *s)
{
	struct infill_session **at = &t->sessions;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	if (t->turn == s)
		t->turn = NULL;
	ahead_drop(s);
	pthread_mutex_lock(&t->lock);
	t->load--;
	pthread_mutex_unlock(&t->lock);
	pthread_mutex_lock(&s->lock);
	s->detached = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void let_leave(struct pool_thread *t)
{
	struct infill_session *s, *next;

	for (s = t->sessions; s; s = next) {
		next = s->next;
		if (may_leave(s))
			let_go(t, s);
	}
}

static struct command *next_command(struct pool_thread *t)
{
	struct command *c;

	pthread_mutex_lock(&t->lock);
	c = t->commands;
	if (c) {
		t->commands = c->next;
		if (!t->commands)
			t->commands_tail = &t->commands;
	}
	pthread_mutex_unlock(&t->lock);
	return c;
}

static void take_commands(struct pool_thread *t)
{
	struct command *c;
	uint64_t count;

	(void)!read(t->wake, &count, sizeof(count));
	while ((c = next_command(t))) {
		if (c->add) {
			let_in(t, c->session);
		} else {
			stop_watching(t, c->session);
			c->session->over = true;
			c->session->leaving = true;
		}
		free(c);
	}
	/* vCPUs may have filled what was left: see pool_wake(). */
	for (struct infill_session *s = t->sessions; s; s = s->next)
		session_check_resident(s);
}

static void take_reads(struct pool_thread *t)
{
	struct reader_request *q;

	while ((q = reader_reap(t->reader))) {
		struct chunk *c = (struct chunk *)q;
		struct infill_session *s = c->session;

		s->under_way--;
		if (s->leaving)
			chunk_free(c);
		else if (c->why == WHY_DEMAND)
			demand_read_done(s, c);
		else
			ahead_read_done(s, c);
	}
}

static void take_event(struct pool_thread *t, const struct epoll_event *e)
{
	struct infill_session *s = (void *)(uintptr_t)(e->data.u64 & ~(uint64_t)SOURCE_MASK);

	switch ((enum source)(e->data.u64 & SOURCE_MASK)) {
	case SOURCE_UFFD:
		if (s->leaving)
			break;
		t->demand = true;
		/* One that cannot be read would be reported for ever. */
		if (!demand_events(s))
			epoll_ctl(t->epoll, EPOLL_CTL_DEL, s->uffd, NULL);
		break;
	case SOURCE_WATCH:
		if (!s->leaving) {
			stop_watching(t, s);
			session_end(s);
		}
		break;
	case SOURCE_CHANNELS:
		if (s->leaving)
			break;
		t->demand = true;
		channels_events(s);
		break;
	case SOURCE_READS:
		reader_seen(t->reader); /* they are taken in every round */
		break;
	default:
		take_commands(t);
		break;
	}
}

/* Installs that met EAGAIN, once more. */
static void retry(struct pool_thread *t)
{
	for (struct infill_session *s = t->sessions; s; s = s->next) {
		if (!s->retries || s->over)
			continue;
		demand_serve(s);
		if (!s->waiting_count && !s->ready)
			s->retries = 0;
	}
}

/* One slice for the next session that has something to do. */
static bool step_ahead(struct pool_thread *t)
{
	struct infill_session *first = t->turn ? t->turn : t->sessions, *s = first;

	if (!s)
		return false;
	do {
		struct infill_session *next = s->next ? s->next : t->sessions;

		if (ahead_step(s)) {
			t->turn = next;
			return true;
		}
		s = next;
	} while (s != first);
	return false;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ns that the thread may sleep if nothing happens. */
static uint64_t wait_ns(struct pool_thread *t, uint64_t now)
{
	uint64_t ns = UINT64_MAX;

	for (struct infill_session *s = t->sessions; s && ns; s = s->next) {
		if (s->retries && !s->over)
			ns = earlier(ns, s->retries < SPINS ? 0 : RETRY_NS);
		ns = earlier(ns, ahead_wait(s, now));
		if (s->recording)
			ns = earlier(ns, session_recording(s, now));
	}
	return ns;
}

static int timeout_ms(struct pool_thread *t, bool busy)
{
	uint64_t ns = busy ? 0 : wait_ns(t, stats_now());

	if (ns == UINT64_MAX || ns)
		for (struct infill_session *s = t->sessions; s; s = s->next)
			timeline_flush(s->timeline);
	if (ns == UINT64_MAX)
		return -1;
	ns = (ns + 999999) / 1000000;
	return ns > 60000 ? 60000 : (int)ns;
}

static bool stopped(struct pool_thread *t)
{
	bool stop;

	pthread_mutex_lock(&t->lock);
	stop = t->stop && !t->commands;
	pthread_mutex_unlock(&t->lock);
	return stop && !t->sessions;
}

static void *run(void *arg)
{
	struct pool_thread *t = arg;
	struct epoll_event events[16];
	bool busy = false;

	do {
		int n = epoll_wait(t->epoll, events, 16, timeout_ms(t, busy));

		t->demand = false;
		for (int i = 0; i < n; i++)
			take_event(t, &events[i]);
		take_reads(t);
		retry(t);
		busy = !t->demand && step_ahead(t);
		reader_flush(t->reader);
		let_leave(t);
	} while (!stopped(t));
	return NULL;
}

static void thread_free(struct pool_thread *t)
{
	reader_free(t->reader);
	while (t->kept_count)
		free(t->kept[--t->kept_count]);
	free(t->buffer);
	free(t->huge);
	if (t->wake >= 0)
		close(t->wake);
	if (t->epoll >= 0)
		close(t->epoll);
	pthread_mutex_destroy(&t->lock);
}

static int thread_start(struct pool_thread *t, unsigned number)
{
	char name[24];
	int err;

	t->commands_tail = &t->commands;
	pthread_mutex_init(&t->lock, NULL);
	t->epoll = epoll_create1(EPOLL_CLOEXEC);
	t->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	t->buffer = aligned_alloc(4096, SLICE_MAX);
	err = reader_new(&t->reader);
	if (!err && (t->epoll < 0 || t->wake < 0 || !t->buffer))
		err = err_set(-errno, "pool: %m");
	if (!err)
		err = watch(t, t->wake, EPOLLIN, NULL, SOURCE_WAKE);
	if (!err)
		err = watch(t, reader_fd(t->reader), EPOLLIN, NULL, SOURCE_READS);
	if (!err) {
		err = thread_new(&t->thread, run, t);
		if (err)
			err_set(err, "pool: cannot start a thread: %m");
	}
	if (err) {
		thread_free(t);
		return err;
	}
	snprintf(name, sizeof(name), "infill-%u", number % 1000);
	pthread_setname_np(t->thread, name);
	return 0;
}

/* One for each two CPUs: the VM's own threads want the others. */
static unsigned threads_default(void)
{
	cpu_set_t set;
	unsigned n = 1;

	if (!sched_getaffinity(0, sizeof(set), &set))
		n = (unsigned)CPU_COUNT(&set) / 2;
	return n < 1 ? 1 : n > THREADS_DEFAULT_MAX ? THREADS_DEFAULT_MAX : n;
}

int infill_pool_new(struct infill_pool **pool, const struct infill_pool_options *options)
{
	struct infill_pool_options o;
	struct infill_pool *p;
	int err = OPTIONS_COPY(&o, options, infill_pool_options);

	if (err)
		return err;
	if (o.threads > THREADS_MAX)
		return err_set(-EINVAL, "pool: %u threads: %u at most", o.threads, THREADS_MAX);
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_set(-ENOMEM, "pool: %m");
	if (!o.threads)
		o.threads = threads_default();
	while (p->threads < o.threads) {
		err = thread_start(&p->thread[p->threads], p->threads);
		if (err) {
			infill_pool_free(p);
			return err;
		}
		p->threads++;
	}
	*pool = p;
	return 0;
}

unsigned infill_pool_threads(const struct infill_pool *pool)
{
	return pool->threads;
}

static void wake(struct pool_thread *t)
{
	const uint64_t one = 1;

	(void)!write(t->wake, &one, sizeof(one));
}

void infill_pool_free(struct infill_pool *pool)
{
	if (!pool)
		return;
	for (unsigned i = 0; i < pool->threads; i++) {
		struct pool_thread *t = &pool->thread[i];

		pthread_mutex_lock(&t->lock);
		t->stop = true;
		pthread_mutex_unlock(&t->lock);
		wake(t);
		pthread_join(t->thread, NULL);
		thread_free(t);
	}
	free(pool);
}

void pool_wake(struct infill_session *s)
{
	wake(s->thread);
}

static int command(struct pool_thread *t, struct infill_session *s, bool add)
{
	struct command *c = calloc(1, sizeof(*c));

	if (!c)
		return err_set(-ENOMEM, "pool: %m");
	c->session = s;
	c->add = add;
	pthread_mutex_lock(&t->lock);
	*t->commands_tail = c;
	t->commands_tail = &c->next;
	t->load += add;
	pthread_mutex_unlock(&t->lock);
	wake(t);
	return 0;
}

int pool_add(struct infill_pool *pool, struct infill_session *s)
{
	struct pool_thread *least = &pool->thread[0];

	for (unsigned i = 1; i < pool->threads; i++)
		if (pool->thread[i].load < least->load)
			least = &pool->thread[i];
	s->thread = least;
	return command(least, s, true);
}

void pool_remove(struct infill_session *s)
{
	/* Without memory for a command there is none for anything: try until there is. */
	while (command(s->thread, s, false))
		sched_yield();
	pthread_mutex_lock(&s->lock);
	while (!s->detached)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}
