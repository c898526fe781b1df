// SPDX-License-Identifier: MIT
/*
 * fakeload.c: the threads of a fake VMM, and what a page must read as.
 *
 * A page's state is VERSION << 16 | OPERATION << 8 | CONTENT.  OPERATION is
 * not zero while a writer or a remover owns the page; when it is done, the
 * version grows by one.  The content of a written page follows from the
 * version that wrote it, so a state alone says what every word is.
 * See fakevmm.h for the model.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fakevmm.h"

#define THREADS_MAX 64

enum operation { OP_NONE, OP_WRITE, OP_REMOVE };
enum torn { TORN_NOT, TORN_SIGBUS, TORN_HANG };

struct worker {
	struct fakevmm *vmm;
	pthread_t thread;
	unsigned number;
	bool remover;
	_Atomic uint64_t page;
	_Atomic uint64_t since; /* ns; 0: not waiting for anything */
	uint64_t *buffer;       /* one page */
	uint64_t random;
	sigjmp_buf jump;
	volatile sig_atomic_t armed;
	volatile sig_atomic_t bus_code;
	void *volatile bus_address;
};

struct fakevmm_run {
	struct fakevmm_load load;
	struct worker worker[THREADS_MAX];
	unsigned workers;
	unsigned touchers;
	pthread_t locker;
	_Atomic unsigned touching;
	_Atomic bool stop;
	_Atomic bool over;
	_Atomic bool abandoned;
	pthread_t watchdog;
};

static __thread struct worker *self;
static struct sigaction bus_before;

#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif

#ifdef THREAD_SANITIZER
/*
 * ThreadSanitizer puts signals off until the thread's next system call, which
 * a thread that waits in a page fault never makes.  This is sigaction(2)
 * behind its back.  The handler must then do without it, and so must what the
 * handler tears a thread out of: a lock of ThreadSanitizer's that the thread
 * held there would never be given back.
 */
int __sigaction(int number, const struct sigaction *action, struct sigaction *before);
#define sigaction_now __sigaction
#define UNSANITIZED __attribute__((no_sanitize("thread")))
#else
#define sigaction_now sigaction
#define UNSANITIZED
#endif

/* ---- failure ---- */

static void fail(struct fakevmm *vmm, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* The first reason is kept; all threads end. */
static void fail(struct fakevmm *vmm, const char *format, ...)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	va_list args;

	pthread_mutex_lock(&lock);
	if (!atomic_load(&vmm->shared->failed)) {
		va_start(args, format);
		vsnprintf(vmm->shared->error, sizeof(vmm->shared->error), format, args);
		va_end(args);
		atomic_store(&vmm->shared->failed, 1);
	}
	pthread_mutex_unlock(&lock);
	if (vmm->run)
		atomic_store(&vmm->run->stop, true);
}

const char *fakevmm_error(const struct fakevmm *vmm)
{
	return atomic_load(&vmm->shared->failed) ? vmm->shared->error : "";
}

/* ---- states ---- */

static uint64_t state_make(uint64_t version, enum operation op, enum fakevmm_content content)
{
	return version << 16 | (uint64_t)op << 8 | content;
}

static uint64_t state_version(uint64_t state)
{
	return state >> 16;
}

static enum operation state_op(uint64_t state)
{
	return state >> 8 & 0xff;
}

static enum fakevmm_content state_content(uint64_t state)
{
	return state & 0xff;
}

/* The state that the operation under way leads to. */
static uint64_t state_next(uint64_t state)
{
	return state_make(state_version(state) + 1, OP_NONE,
			  state_op(state) == OP_WRITE ? FAKEVMM_WRITTEN : FAKEVMM_REMOVED);
}

static uint64_t word_of(const struct fakevmm *vmm, uint64_t state, uint64_t offset)
{
	switch (state_content(state)) {
	case FAKEVMM_IMAGE:
		return fakeimage_word(&vmm->image, offset);
	case FAKEVMM_WRITTEN:
		return fake_mix(offset ^ fake_mix(state_version(state))) | 1;
	default:
		return 0;
	}
}

static bool claim(struct fakevmm *vmm, uint64_t page, enum operation op)
{
	uint64_t state = atomic_load(&vmm->state[page]);

	return state_op(state) == OP_NONE && state_content(state) != FAKEVMM_POISONED &&
	       atomic_compare_exchange_strong(&vmm->state[page], &state,
					      state | (uint64_t)op << 8);
}

static void release(struct fakevmm *vmm, uint64_t page)
{
	atomic_store(&vmm->state[page], state_next(atomic_load(&vmm->state[page])));
}

void fakevmm_expect(struct fakevmm *vmm, uint64_t page, enum fakevmm_content content)
{
	uint64_t version = state_version(atomic_load(&vmm->state[page]));

	atomic_store(&vmm->state[page], state_make(version + 1, OP_NONE, content));
}

/* ---- touching without hanging ---- */

static UNSANITIZED void torn_out(int number, siginfo_t *info, void *context)
{
	struct worker *worker = self;

	if (worker && worker->armed) {
		worker->armed = 0;
		worker->bus_code = info->si_code;
		worker->bus_address = info->si_addr;
		siglongjmp(worker->jump, number == SIGBUS ? TORN_SIGBUS : TORN_HANG);
	}
	if (number == SIGUSR1)
		return;
	if (bus_before.sa_flags & SA_SIGINFO)
		bus_before.sa_sigaction(number, info, context);
	else if (bus_before.sa_handler != SIG_DFL && bus_before.sa_handler != SIG_IGN)
		bus_before.sa_handler(number);
	else
		signal(SIGBUS, SIG_DFL);
}

/* Before each load: cmocka puts its own handler in place for each test. */
static void signals_install(void)
{
	struct sigaction now, action = {
		.sa_sigaction = torn_out,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	sigaction_now(SIGUSR1, &action, NULL);
	sigaction_now(SIGBUS, NULL, &now);
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == torn_out)
		return;
	bus_before = now;
	sigaction_now(SIGBUS, &action, NULL);
}

/*
 * Copy words out of, or into, guest memory; the other side is private.  A word
 * is one access, but no atomic: clang has ThreadSanitizer see to atomics in an
 * UNSANITIZED function too.
 */
static UNSANITIZED __attribute__((noinline)) enum torn
copy_guest(struct worker *worker, volatile uint64_t *to, const volatile uint64_t *from,
	   size_t words)
{
	enum torn torn = (enum torn)sigsetjmp(worker->jump, 0);

	if (torn)
		return torn;
	worker->armed = 1;
	for (size_t i = 0; i < words; i++)
		to[i] = from[i];
	worker->armed = 0;
	return TORN_NOT;
}

static enum torn copy_watched(struct worker *worker, uint64_t page, uint64_t *to,
			      const uint64_t *from, size_t words)
{
	enum torn torn;

	atomic_store(&worker->page, page);
	atomic_store(&worker->since, fake_now_ns());
	torn = copy_guest(worker, to, from, words);
	atomic_store(&worker->since, 0);
	return torn;
}

/* ---- judging ---- */

static const char *content_name(uint64_t state)
{
	static const char *const name[] = { "image content", "removed, so zero",
					    "the VMM's own write", "poisoned" };

	return name[state_content(state)];
}

static void fail_word(struct worker *worker, uint64_t page, size_t word, uint64_t is,
		      uint64_t should, uint64_t state)
{
	fail(worker->vmm,
	     "page %llu (image offset 0x%llx): word %zu is %016llx, should be %016llx (%s)",
	     (unsigned long long)page, (unsigned long long)fakevmm_offset(worker->vmm, page), word,
	     (unsigned long long)is, (unsigned long long)should, content_name(state));
}

/*
 * Each word is of OLD or of NEXT; once a word of a removed page was seen as
 * removed, no later one may be old.
 */
static void judge(struct worker *worker, uint64_t page, uint64_t old, uint64_t next)
{
	struct fakevmm *vmm = worker->vmm;
	uint64_t offset = fakevmm_offset(vmm, page);
	bool removed = false;

	for (size_t i = 0; i < vmm->page_size / 8; i++) {
		uint64_t is = worker->buffer[i];
		uint64_t a = word_of(vmm, old, offset + 8 * i);
		uint64_t b = next == old ? a : word_of(vmm, next, offset + 8 * i);

		if (is != a && is != b)
			return fail_word(worker, page, i, is, a, old);
		if (a == b || state_content(next) != FAKEVMM_REMOVED)
			continue;
		if (removed && is == a)
			return fail_word(worker, page, i, is, b, next);
		removed |= is == b;
	}
}

/* BEFORE and AFTER are the page's states around the copy in worker->buffer. */
static void judge_between(struct worker *worker, uint64_t page, uint64_t before, uint64_t after)
{
	uint64_t completed = state_version(after) - state_version(before);

	if (completed == 0)
		judge(worker, page, before, state_op(after) ? state_next(after) : before);
	else if (completed == 1 && !state_op(after))
		judge(worker, page, before, after);
	else
		atomic_fetch_add(&worker->vmm->shared->unjudged, 1);
}

/* A kernel without CONFIG_MEMORY_FAILURE has no memory errors, and says it less exactly. */
static int poison_code(void)
{
	return access("/proc/sys/vm/memory_failure_recovery", F_OK) ? BUS_ADRERR : BUS_MCEERR_AR;
}

static void judge_sigbus(struct worker *worker, uint64_t page, uint64_t state)
{
	char *begin = fakevmm_page(worker->vmm, page);
	char *at = worker->bus_address;

	if (state_content(state) != FAKEVMM_POISONED)
		fail(worker->vmm, "page %llu (image offset 0x%llx): SIGBUS, should be readable (%s)",
		     (unsigned long long)page,
		     (unsigned long long)fakevmm_offset(worker->vmm, page), content_name(state));
	else if (worker->bus_code != poison_code() || at < begin ||
		 at >= begin + worker->vmm->page_size)
		fail(worker->vmm, "page %llu: SIGBUS code %d at %p, should be code %d at %p",
		     (unsigned long long)page, (int)worker->bus_code, (void *)at, poison_code(),
		     (void *)begin);
}

static void fail_hang(struct worker *worker, uint64_t page)
{
	if (atomic_load(&worker->vmm->run->abandoned))
		return;
	fail(worker->vmm, "page %llu (image offset 0x%llx, address %p): not served, thread %u waits",
	     (unsigned long long)page, (unsigned long long)fakevmm_offset(worker->vmm, page),
	     (void *)fakevmm_page(worker->vmm, page), worker->number);
}

static void read_page(struct worker *worker, uint64_t page)
{
	struct fakevmm *vmm = worker->vmm;
	uint64_t before = atomic_load(&vmm->state[page]);
	const uint64_t *from = (const uint64_t *)fakevmm_page(vmm, page);
	enum torn torn = copy_watched(worker, page, worker->buffer, from, vmm->page_size / 8);
	uint64_t after = atomic_load(&vmm->state[page]);

	atomic_fetch_add(&vmm->shared->touches, 1);
	if (torn == TORN_HANG)
		fail_hang(worker, page);
	else if (torn == TORN_SIGBUS)
		judge_sigbus(worker, page, before);
	else if (state_content(before) == FAKEVMM_POISONED)
		fail(vmm, "page %llu (image offset 0x%llx): readable, should be poisoned",
		     (unsigned long long)page, (unsigned long long)fakevmm_offset(vmm, page));
	else
		judge_between(worker, page, before, after);
}

/* ---- writing and removing ---- */

/* The page is claimed: its content is exact before and after. */
static void write_page(struct worker *worker, uint64_t page)
{
	struct fakevmm *vmm = worker->vmm;
	uint64_t next = state_next(atomic_load(&vmm->state[page]));
	uint64_t offset = fakevmm_offset(vmm, page);
	uint64_t *at = (uint64_t *)fakevmm_page(vmm, page);

	for (size_t i = 0; i < vmm->page_size / 8; i++)
		worker->buffer[i] = word_of(vmm, next, offset + 8 * i);
	if (copy_watched(worker, page, at, worker->buffer, vmm->page_size / 8) == TORN_HANG)
		fail_hang(worker, page);
	release(vmm, page);
	atomic_fetch_add(&vmm->shared->writes, 1);
}

/* Give back COUNT claimed pages. */
static int remove_claimed(struct fakevmm *vmm, uint64_t first, uint64_t count)
{
	bool shared = vmm->backing == INFILL_BACKING_SHMEM && !vmm->private_file;
	int err = 0;

	atomic_fetch_add(&vmm->shared->removing, 1);
	if (madvise(fakevmm_page(vmm, first), count * vmm->page_size,
		    shared ? MADV_REMOVE : MADV_DONTNEED))
		err = -errno;
	atomic_fetch_sub(&vmm->shared->removing, 1);
	atomic_fetch_add(&vmm->shared->removed, count);
	for (uint64_t page = first; page < first + count; page++)
		release(vmm, page);
	return err;
}

int fakevmm_remove(struct fakevmm *vmm, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		if (!claim(vmm, page, OP_REMOVE))
			return -EBUSY;
	return remove_claimed(vmm, first, count);
}

void fakevmm_populate(struct fakevmm *vmm, uint64_t first, uint64_t count)
{
	uint64_t *buffer = aligned_alloc(FAKE_PAGE, vmm->page_size);

	if (!buffer)
		fake_die("buffer of a page");
	for (uint64_t page = first; page < first + count; page++) {
		struct uffdio_copy copy = { .len = vmm->page_size };
		uint64_t state;

		fakevmm_expect(vmm, page, FAKEVMM_WRITTEN);
		state = atomic_load(&vmm->state[page]);
		for (size_t i = 0; i < vmm->page_size / 8; i++)
			buffer[i] = word_of(vmm, state, fakevmm_offset(vmm, page) + 8 * i);
		copy.dst = (uintptr_t)fakevmm_page(vmm, page);
		copy.src = (uintptr_t)buffer;
		if (ioctl(vmm->uffd, UFFDIO_COPY, &copy))
			fake_die("UFFDIO_COPY of the VMM's own page");
	}
	free(buffer);
}

/* ---- threads ---- */

static uint64_t worker_random(struct worker *worker)
{
	return worker->random = fake_mix(worker->random);
}

static uint64_t coprime_stride(uint64_t count, uint64_t stride)
{
	for (;; stride++) {
		uint64_t a = count, b = stride;

		while (b) {
			uint64_t rest = a % b;

			a = b;
			b = rest;
		}
		if (a == 1)
			return stride;
	}
}

/* Every page once, in the order of the load's pattern.  Freed by the caller. */
static uint32_t *order_make(struct worker *worker, const struct fakevmm_load *load)
{
	uint64_t count = load->count;
	uint64_t start = worker->number * count / worker->vmm->run->touchers;
	uint64_t stride = load->pattern == FAKEVMM_STRIDED ? coprime_stride(count, 17) : 1;
	uint32_t *order = calloc(count, sizeof(*order));

	if (!order)
		fake_die("touch order");
	for (uint64_t i = 0; i < count; i++)
		order[i] = (uint32_t)(load->first + (start + i * stride) % count);
	for (uint64_t i = count - 1; load->pattern == FAKEVMM_RANDOM && i > 0; i--) {
		uint64_t j = worker_random(worker) % (i + 1);
		uint32_t swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	return order;
}

static void pause_us(unsigned us)
{
	struct timespec time = { us / 1000000, (long)(us % 1000000) * 1000 };

	if (us)
		nanosleep(&time, NULL);
}

static void touch_one(struct worker *worker, const struct fakevmm_load *load, uint64_t page)
{
	bool write = load->write_every && worker_random(worker) % load->write_every == 0;

	if (write && claim(worker->vmm, page, OP_WRITE))
		write_page(worker, page);
	else
		read_page(worker, page);
	pause_us(load->touch_pause_us);
}

static void *toucher_run(void *arg)
{
	struct worker *worker = self = arg;
	struct fakevmm_run *run = worker->vmm->run;
	uint32_t *order = order_make(worker, &run->load);

	for (unsigned pass = 0; !run->load.passes || pass < run->load.passes; pass++)
		for (uint64_t i = 0; i < run->load.count; i++) {
			if (atomic_load(&run->stop))
				goto end;
			touch_one(worker, &run->load, order[i]);
		}
end:
	free(order);
	atomic_fetch_sub(&run->touching, 1);
	return NULL;
}

/* Claim pages from FIRST on, up to COUNT, in one region. */
static uint64_t claim_range(struct fakevmm *vmm, uint64_t first, uint64_t count)
{
	char *begin = fakevmm_page(vmm, first);
	uint64_t n = 0;

	while (n < count && first + n < vmm->pages &&
	       fakevmm_page(vmm, first + n) == begin + n * vmm->page_size &&
	       claim(vmm, first + n, OP_REMOVE))
		n++;
	return n;
}

/* Give back a range somewhere. */
static int remove_somewhere(struct worker *worker, const struct fakevmm_load *load)
{
	uint64_t first = load->first + worker_random(worker) % load->count;
	uint64_t count = 1 + worker_random(worker) % load->remove_pages;
	int err;

	if (count > load->first + load->count - first)
		count = load->first + load->count - first;
	count = claim_range(worker->vmm, first, count);
	if (!count)
		return 0;
	atomic_store(&worker->page, first);
	atomic_store(&worker->since, fake_now_ns());
	err = remove_claimed(worker->vmm, first, count);
	atomic_store(&worker->since, 0);
	pause_us(load->remove_pause_us);
	return err;
}

static void *remover_run(void *arg)
{
	struct worker *worker = self = arg;
	struct fakevmm_run *run = worker->vmm->run;
	uint64_t end = fake_now_ns() + run->load.remove_ms * 1000000ull;
	int err = 0;

	while (!err && atomic_load(&run->touching) && !atomic_load(&run->stop) &&
	       !(run->load.remove_ms && fake_now_ns() > end))
		err = remove_somewhere(worker, &run->load);
	if (err)
		fail(worker->vmm, "madvise: %s", strerror(-err));
	return NULL;
}

/* mprotect() of many pages holds the address space's lock as writer, for about a millisecond. */
static void *locker_run(void *arg)
{
	struct fakevmm_run *run = arg;
	size_t length = 128u << 20;
	char *at = mmap(NULL, length, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED || madvise(at, length, MADV_NOHUGEPAGE))
		fake_die("memory of the locking thread");
	for (size_t i = 0; i < length; i += FAKE_PAGE)
		at[i] = 1;
	while (!atomic_load(&run->over)) {
		mprotect(at, length, PROT_READ);
		mprotect(at, length, PROT_READ | PROT_WRITE);
		pause_us(100);
	}
	munmap(at, length);
	return NULL;
}

/* ---- watchdog ---- */

static uint64_t hang_ns(void)
{
	const char *text = getenv("INFILL_TEST_HANG_S");
	uint64_t seconds = text ? strtoull(text, NULL, 10) : 0;

	return (seconds ? seconds : 60 * FAKE_SLOWNESS) * 1000000000u;
}

/* A thread in madvise(2) waits for the pager uninterruptibly: only the end of the process helps. */
static void bail_out(const struct fakevmm *vmm)
{
	fprintf(stderr, "\nBail out! %s\n", fakevmm_error(vmm));
	_exit(96);
}

static void watch_worker(struct worker *worker, uint64_t now)
{
	uint64_t since = atomic_load(&worker->since);
	uint64_t waited = since && now > since ? now - since : 0;

	if (waited > 50000000 && atomic_load(&worker->vmm->run->abandoned) && !worker->remover)
		pthread_kill(worker->thread, SIGUSR1);
	if (waited < hang_ns())
		return;
	if (worker->remover)
		fail(worker->vmm, "page %llu: its removal is not read by the pager",
		     (unsigned long long)atomic_load(&worker->page));
	else
		pthread_kill(worker->thread, SIGUSR1);
	if (waited > hang_ns() + 5000000000u) {
		fail_hang(worker, atomic_load(&worker->page));
		bail_out(worker->vmm);
	}
}

static void *watchdog_run(void *arg)
{
	struct fakevmm_run *run = arg;

	while (!atomic_load(&run->over)) {
		uint64_t now = fake_now_ns();

		for (unsigned i = 0; i < run->workers; i++)
			watch_worker(&run->worker[i], now);
		fake_sleep_ms(5);
	}
	return NULL;
}

/* ---- loads ---- */

static void worker_start(struct fakevmm *vmm, unsigned number, bool remover)
{
	struct worker *worker = &vmm->run->worker[number];

	worker->vmm = vmm;
	worker->number = number;
	worker->remover = remover;
	worker->random = fake_mix(vmm->run->load.seed * THREADS_MAX + number);
	worker->buffer = aligned_alloc(FAKE_PAGE, vmm->page_size);
	if (!worker->buffer || pthread_create(&worker->thread, NULL,
					      remover ? remover_run : toucher_run, worker))
		fake_die("thread of the fake VMM");
}

static void load_complete(struct fakevmm_load *load, const struct fakevmm *vmm)
{
	if (!load->threads)
		load->threads = 1;
	if (!load->count)
		load->count = vmm->pages - load->first;
	if (!load->remove_pages)
		load->remove_pages = 64;
}

void fakevmm_start(struct fakevmm *vmm, const struct fakevmm_load *load)
{
	struct fakevmm_run *run = calloc(1, sizeof(*run));

	if (!run)
		fake_die("struct fakevmm_run");
	signals_install();
	run->load = *load;
	load_complete(&run->load, vmm);
	run->touchers = run->load.threads;
	run->workers = run->load.threads + run->load.removers;
	atomic_store(&run->touching, run->touchers);
	vmm->run = run;
	for (unsigned i = 0; i < run->workers; i++)
		worker_start(vmm, i, i >= run->touchers);
	if (run->load.lock_often && pthread_create(&run->locker, NULL, locker_run, run))
		fake_die("locking thread of the fake VMM");
	if (pthread_create(&run->watchdog, NULL, watchdog_run, run))
		fake_die("watchdog of the fake VMM");
}

void fakevmm_stop(struct fakevmm *vmm)
{
	struct fakevmm_run *run = vmm->run;

	if (run && !run->load.passes)
		atomic_store(&run->stop, true);
}

void fakevmm_abandon(struct fakevmm *vmm)
{
	atomic_store(&vmm->run->abandoned, true);
	atomic_store(&vmm->run->stop, true);
}

static bool waits_for(const struct fakevmm_run *run, uint64_t page)
{
	uint64_t now = fake_now_ns();

	for (unsigned i = 0; i < run->workers; i++) {
		uint64_t since = atomic_load(&run->worker[i].since);

		if (since && atomic_load(&run->worker[i].page) == page && now > since + 50000000)
			return true;
	}
	return false;
}

bool fakevmm_wait_waiting(struct fakevmm *vmm, uint64_t page, unsigned timeout_ms)
{
	uint64_t end = fake_now_ns() + timeout_ms * 1000000ull;

	while (!waits_for(vmm->run, page)) {
		if (fake_now_ns() > end)
			return false;
		fake_sleep_ms(1);
	}
	return true;
}

int fakevmm_finish(struct fakevmm *vmm)
{
	struct fakevmm_run *run = vmm->run;

	for (unsigned i = 0; i < run->workers; i++)
		pthread_join(run->worker[i].thread, NULL);
	atomic_store(&run->over, true);
	pthread_join(run->watchdog, NULL);
	if (run->load.lock_often)
		pthread_join(run->locker, NULL);
	for (unsigned i = 0; i < run->workers; i++)
		free(run->worker[i].buffer);
	vmm->run = NULL;
	free(run);
	return atomic_load(&vmm->shared->failed) ? -1 : 0;
}

int fakevmm_run(struct fakevmm *vmm, const struct fakevmm_load *load)
{
	fakevmm_start(vmm, load);
	return fakevmm_finish(vmm);
}

int fakevmm_touch(struct fakevmm *vmm, uint64_t first, uint64_t count)
{
	struct fakevmm_load load = { .first = first, .count = count, .passes = 1 };

	return fakevmm_run(vmm, &load);
}

int fakevmm_verify(struct fakevmm *vmm)
{
	return fakevmm_touch(vmm, 0, vmm->pages);
}
