/* SPDX-License-Identifier: MIT */
/* remote_session.c: a session whose pager is another process.  Internal, but for infill.h's. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "err.h"
#include "memfd.h"
#include "memory.h"
#include "poison.h"
#include "remote.h"
#include "remote_session.h"
#include "thread.h"
#include "userfault.h"

#define VCPUS_MAX 65536u
#define VERDICT_MS 2000 /* until the thread that hears the pager says why it is gone */

/* ---- what the pager says ------------------------------------------------------------ */

static void fail(struct infill_session *s, int code)
{
	session_fail(s, code);
	/* Who waits for an answer finds the reason in the session. */
	remote_shutdown(s->remote);
	poison_missing(s);
}

static void become_resident(struct infill_session *s)
{
	int err;

	if (s->resident)
		return;
	err = userfault_disable(s->userfault);
	if (err) {
		fail(s, err);
		return;
	}
	userfault_forget(s->userfault);
	s->resident = true;
	stats_mark(&s->pm.stats->resident_ns, stats_now());
	session_event(s, INFILL_EVENT_RESIDENT, 0, 0, 0, NULL);
	session_reach(s, INFILL_WAIT_RESIDENT);
}

/* False: there will be no other. */
static bool hear(struct infill_session *s)
{
	struct wire_notice notice;
	char text[WIRE_NOTICE_MAX];
	int rc = remote_notice(s->remote, &notice, text, -1);

	if (rc) {
		/* Who has all its pages can do without. */
		if (!s->resident && !session_over(s))
			fail(s, rc);
		return false;
	}
	if (notice.type == WIRE_RESIDENT)
		become_resident(s);
	else if (notice.type == WIRE_ERROR && !s->resident)
		fail(s, err_set(notice.error ? -(int)notice.error : -EPROTO, "pager: %s", text));
	return !session_over(s);
}

static void *listen_thread(void *arg)
{
	while (hear(arg))
		;
	return NULL;
}

void remote_session_stop(struct infill_session *s)
{
	pthread_mutex_lock(&s->lock);
	s->over = true;
	pthread_mutex_unlock(&s->lock);
	remote_shutdown(s->remote);
	pthread_join(s->remote_thread, NULL);
	remote_free(s->remote);
}

/* The pager is gone: 0 if WHAT has come about before that, or why nothing is filled any more. */
static int verdict(struct infill_session *s, enum infill_wait what)
{
	int err = infill_session_wait(s, what, VERDICT_MS);

	return err == -ETIMEDOUT ? err_set(-ECONNRESET, "pager: the connection has ended: no more is "
							"filled") : err;
}

/* ---- pages ---------------------------------------------------------------------------- */

int remote_session_page(struct infill_session *s, unsigned thread, const struct pagemap_region *r,
			uint64_t page, const volatile uint8_t *stop, uint64_t *count)
{
	uint64_t gpa = r->gpa + (page - r->first) * r->page_size, first, bytes, end;
	int err;

	*count = 1;
	if (!userfault_missing(s->userfault, r, page))
		return 0;
	if (session_over(s))
		return verdict(s, INFILL_WAIT_END);
	err = remote_ask(s->remote, thread, gpa, stop, &first, &bytes);
	if (err && !userfault_missing(s->userfault, r, page))
		return 0;
	if (err == -ECONNRESET)
		err = verdict(s, INFILL_WAIT_END);
	if (err)
		return err;
	end = first + bytes < r->gpa + r->length ? first + bytes : r->gpa + r->length;
	if (end > gpa)
		*count = (end - gpa) / r->page_size;
	return 0;
}

int remote_session_discard(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			   uint64_t count)
{
	int err = infill_session_wait(s, INFILL_WAIT_RESIDENT, 0);

	if (err != -ETIMEDOUT)
		return err;
	err = remote_discard(s->remote, r->gpa + (page - r->first) * r->page_size,
			     count * r->page_size);
	/* Perhaps it was needed no more, and has said so before. */
	return err == -ECONNRESET ? verdict(s, INFILL_WAIT_RESIDENT) : err;
}

/* ---- starting --------------------------------------------------------------------------- */

static int check_options(const struct infill_session_options *o, const struct infill_memory *memory,
			 unsigned vcpus)
{
	if (o->trace || o->record || o->cache || o->fill || o->rate || o->watch_fd > 0)
		return err_set(-EINVAL, "session: trace, record, cache, fill, rate and watch_fd are "
			       "the pager's: must be unset");
	if (!memory->count)
		return err_set(-EINVAL, "memory: has no region");
	if (!vcpus || vcpus > VCPUS_MAX)
		return err_set(-EINVAL, "session: %u vCPUs: must be 1 to %u", vcpus, VCPUS_MAX);
	return 0;
}

/* The file of all bitmaps, which nobody can cut short.  An fd or -errno. */
static int make_bitmaps(const struct infill_memory *memory)
{
	uint64_t host_page = (uint64_t)sysconf(_SC_PAGESIZE), bytes = 0;
	int fd;

	for (unsigned i = 0; i < memory->count; i++)
		bytes += wire_bitmap_bytes(memory->region[i].length, host_page);
	fd = memfd_make("infill-userfault", bytes);
	if (fd < 0)
		return err_set(fd, "userfault: cannot make the bitmaps: %m");
	if (!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return fd;
	err_set(-errno, "userfault: cannot seal the bitmaps: %m");
	close(fd);
	return -EPERM;
}

/* Of the state file only the regions and the counters are used: the pager has the states. */
static int open_regions(struct infill_session *s, const struct infill_memory *memory)
{
	const struct infill_identity none = { 0 };
	int fd = session_new_state(), err;
	bool resumed;

	if (fd < 0)
		return fd;
	err = pagemap_open(&s->pm, fd, memory, &none, 0, &resumed);
	close(fd);
	return err;
}

static int connect_vm(struct infill_session *s, const char *path, int vm_fd,
		      const struct infill_memory *memory, unsigned vcpus)
{
	int bitmaps, err = userfault_check(vm_fd);

	s->protected = userfault_protected(vm_fd);
	if (!err && s->protected)
		err = userfault_check_protected(memory);
	if (!err)
		err = session_watch(s, memory);
	if (!err)
		err = open_regions(s, memory);
	if (err)
		return err;
	stats_mark(&s->pm.stats->start_ns, stats_now());
	s->reached = 1u << INFILL_WAIT_TRACE | 1u << INFILL_WAIT_RECORDED;
	bitmaps = make_bitmaps(memory);
	if (bitmaps < 0)
		return bitmaps;
	err = userfault_new(&s->userfault, vm_fd, bitmaps, memory, &s->pm);
	if (!err)
		err = remote_connect(&s->remote, path, memory, bitmaps, s->uffd, s->protected,
				     vcpus);
	close(bitmaps);
	return err;
}

int infill_session_connect_vm(struct infill_session **session, const char *path, int vm_fd,
			      const struct infill_memory *memory, unsigned vcpus,
			      const struct infill_session_options *options)
{
	struct infill_session *s = NULL;
	int err = session_new(&s, NULL, options);

	if (err)
		return err;
	err = check_options(&s->options, memory, vcpus);
	if (!err)
		err = connect_vm(s, path, vm_fd, memory, vcpus);
	if (!err) {
		err = thread_new(&s->remote_thread, listen_thread, s);
		if (err)
			err_set(err, "session: cannot start a thread: %m");
	}
	if (!err) {
		*session = s;
		return 0;
	}
	if (s->userfault)
		userfault_disable(s->userfault);
	remote_free(s->remote);
	session_free(s);
	return err;
}
