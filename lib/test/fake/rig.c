// SPDX-License-Identifier: MIT
/*
 * rig.c: one image, one fake VMM and one session in this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

/* ---- events ---- */

struct rig_events *rig_events_new(void)
{
	struct rig_events *events = calloc(1, sizeof(*events));

	if (!events)
		fake_die("struct rig_events");
	pthread_mutex_init(&events->lock, NULL);
	return events;
}

void rig_events_add(struct infill_session *session, const struct infill_event *event, void *arg)
{
	struct rig_events *events = arg;

	(void)session;
	pthread_mutex_lock(&events->lock);
	if (events->count < RIG_EVENTS_MAX) {
		struct rig_event *own = &events->event[events->count];

		own->kind = event->kind;
		own->error = event->error;
		own->offset = event->offset;
		own->length = event->length;
		snprintf(own->text, sizeof(own->text), "%s", event->text ? event->text : "");
	}
	events->count++;
	pthread_mutex_unlock(&events->lock);
}

static const struct rig_event *events_find(struct rig_events *events, uint32_t kind,
					   unsigned number)
{
	const struct rig_event *found = NULL;

	pthread_mutex_lock(&events->lock);
	for (unsigned i = 0; i < events->count && i < RIG_EVENTS_MAX && !found; i++)
		if (events->event[i].kind == kind && number-- == 0)
			found = &events->event[i];
	pthread_mutex_unlock(&events->lock);
	return found;
}

const struct rig_event *rig_events_wait(struct rig_events *events, uint32_t kind, unsigned number,
					unsigned timeout_ms)
{
	uint64_t end = fake_now_ns() + timeout_ms * 1000000ull;
	const struct rig_event *found;

	while (!(found = events_find(events, kind, number)) && fake_now_ns() < end)
		fake_sleep_ms(1);
	return found;
}

unsigned rig_events_count(struct rig_events *events, uint32_t kind)
{
	unsigned count = 0;

	while (events_find(events, kind, count))
		count++;
	return count;
}

/* ---- the rig ---- */

static void image_prepare(struct rig *rig)
{
	int err;

	if (!rig->image.bytes)
		rig->image.bytes = 8u << 20;
	if (!rig->image_made && rig->source_fd <= 0)
		fakeimage_make(&rig->image);
	if (rig->source_fd > 0)
		err = infill_image_open_fd(&rig->source, rig->source_fd, "image-by-fd", NULL);
	else
		err = infill_image_open(&rig->source, rig->image.path, NULL);
	if (err)
		fail_msg("image: %s", infill_error());
}

void rig_prepare(struct rig *rig)
{
	struct infill_pool_options pool = { .size = sizeof(pool), .threads = rig->threads };
	struct fakevmm_options vmm = {
		.image = &rig->image,
		.backing = rig->minor ? INFILL_BACKING_SHMEM : rig->backing,
		.page_size = rig->page_size,
		.regions = rig->regions,
	};

	rig_need_userfaultfd();
	fake_deadline(program_invocation_short_name, 180);
	rig->events = rig_events_new();
	image_prepare(rig);
	if (rig->minor) {
		assert_int_equal(infill_cache_new(&rig->cache, rig->source), 0);
		vmm.cache_fd = infill_cache_fd(rig->cache);
	}
	assert_int_equal(infill_pool_new(&rig->pool, &pool), 0);
	rig->vmm = fakevmm_new(&vmm);
	rig->memory = fakevmm_memory(rig->vmm);
	if (rig->adopt)
		assert_int_equal(fakevmm_register(rig->vmm), 0);
	if (rig->populate)
		fakevmm_populate(rig->vmm, 0, rig->populate);
}

int rig_start_prepared(struct rig *rig)
{
	struct infill_session_options options = rig->session_options;

	options.size = sizeof(options);
	options.cache = rig->cache;
	options.event = rig_events_add;
	options.event_arg = rig->events;
	if (rig->adopt)
		return infill_session_adopt(&rig->session, rig->pool, rig->memory, rig->source,
					    rig->vmm->uffd, &options);
	return infill_session_start(&rig->session, rig->pool, rig->memory, rig->source, &options);
}

int rig_start(struct rig *rig)
{
	rig_prepare(rig);
	return rig_start_prepared(rig);
}

void rig_stop(struct rig *rig)
{
	infill_session_stop(rig->session);
	fakevmm_free(rig->vmm);
	infill_memory_free(rig->memory);
	infill_pool_free(rig->pool);
	infill_cache_free(rig->cache);
	infill_image_close(rig->source);
	free(rig->events);
	if (!rig->image_made && rig->source_fd <= 0)
		fakeimage_remove(&rig->image);
	fake_deadline("", 0);
}

static struct infill_counters counters_now(const struct infill_session *session)
{
	struct infill_counters counters = { .size = sizeof(counters) };

	assert_int_equal(infill_session_counters(session, &counters), 0);
	return counters;
}

struct infill_counters rig_settled(struct infill_session *session)
{
	struct infill_counters last, c = counters_now(session);
	uint64_t end = fake_now_ns() + 10000000000u;

	/* The latency of a fault is the last thing that is counted of it. */
	while (!c.resumes && c.latency_count != c.faults && fake_now_ns() < end &&
	       infill_session_wait(session, INFILL_WAIT_END, 1) == -ETIMEDOUT)
		c = counters_now(session);
	/* What an earlier process left waiting has none: it faults again. */
	do {
		last = c;
		if (c.resumes)
			infill_session_wait(session, INFILL_WAIT_END, 100);
		c = counters_now(session);
	} while (c.resumes && memcmp(&c, &last, sizeof(c)) && fake_now_ns() < end);
	return c;
}

struct infill_counters rig_counters(const struct rig *rig)
{
	return rig->vmm->run ? counters_now(rig->session) : rig_settled(rig->session);
}

/* ---- assertions ---- */

void rig_assert_load(struct fakevmm *vmm, int result)
{
	if (result)
		fail_msg("%s", fakevmm_error(vmm));
}

void rig_assert_consistent(const struct rig *rig)
{
	struct infill_counters c = rig_counters(rig);

	assert_int_equal(c.pages, rig->vmm->pages);
	assert_int_equal(c.installs, c.demand_pages + c.trace_pages + c.rest_pages);
	assert_int_equal(c.bytes, c.installs * rig->vmm->page_size);
	assert_true(c.zero_pages <= c.installs);
	assert_true(c.latency_p50_ns <= c.latency_p90_ns && c.latency_p90_ns <= c.latency_p99_ns &&
		    c.latency_p99_ns <= c.latency_p999_ns &&
		    c.latency_p999_ns <= c.latency_max_ns && c.latency_max_ns <= c.stall_ns);
	assert_true(c.start_ns > 0 && c.start_ns <= fake_now_ns());
}

void rig_assert_says(const char *text, const char *fragment)
{
	if (!strstr(text, fragment))
		fail_msg("\"%s\" does not say \"%s\"", text, fragment);
}

/* ---- what this machine must have ---- */

void rig_skip(const char *reason)
{
	print_message("# skipped: %s\n", reason);
	skip();
	abort();
}

void rig_need_hugepages(uint64_t count)
{
	if (!fake_hugepages(count))
		rig_skip("no free huge pages of 2 MiB, and none can be reserved");
}

void rig_need_userfaultfd(void)
{
	int fd = infill_host_userfaultfd(0);

	if (fd < 0)
		rig_skip("userfaultfd is not permitted to this process: see `infill doctor`");
	close(fd);
}

void rig_need_root(const char *what_for)
{
	if (geteuid())
		rig_skip(what_for);
}
