/* SPDX-License-Identifier: MIT */
/*
 * restored.c: the contenders.  A new one is a line in `enum contender`, its
 * name in plan.c and its start here.
 */
#include "restored.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"
#include "touch.h"

bool restored_writes(enum contender c)
{
	return c == CONTENDER_MAPPED_WRITE;
}

static void begin_mapped(struct restored *r)
{
	const struct content *c = &r->bench->content;
	int fd = open(c->path, O_RDONLY | O_CLOEXEC);

	r->guest = (struct guest){ .bytes = c->bytes, .page = CONTENT_PAGE };
	r->guest.base = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
			     fd, 0);
	if (r->guest.base == MAP_FAILED)
		fail(c->path, "cannot be mapped");
	close(fd);
}

static void begin_bare(struct restored *r, const struct item *item)
{
	const uint8_t *source = r->bench->content.buffer;

	guest_map(&r->guest, item->backing, r->bench->content.bytes, -1);
	if (item->contender != CONTENDER_PAGE_BUFFER)
		source = r->image = content_map(&r->bench->content, 0);
	r->bare = bare_start(&r->guest, source,
			     item->contender == CONTENDER_ALL ? BARE_ALL : BARE_PAGE);
}

static bool begin_infill(struct restored *r, const struct item *item)
{
	enum contender c = item->contender;
	struct engine_settings s = {
		.image = r->bench->content.path,
		.fill = c == CONTENDER_TRACE ? INFILL_FILL_TRACE :
			c == CONTENDER_FILL  ? INFILL_FILL_ALL :
					       INFILL_FILL_NONE,
		.rate = item->rate,
		.trace = c == CONTENDER_TRACE ? item->trace : NULL,
	};

	guest_map(&r->guest, item->backing, r->bench->content.bytes, -1);
	r->infill = !engine_start(&r->engine, &s, &r->guest);
	if (r->infill)
		return true;
	figure_skip(item->row, "%s", r->engine.why);
	guest_unmap(&r->guest);
	return false;
}

bool restored_begin(struct restored *r, const struct item *item)
{
	memset(r, 0, sizeof(*r));
	r->bench = item->bench;
	switch (item->contender) {
	case CONTENDER_MAPPED:
	case CONTENDER_MAPPED_WRITE:
		begin_mapped(r);
		return true;
	case CONTENDER_PAGE:
	case CONTENDER_PAGE_BUFFER:
	case CONTENDER_ALL:
		begin_bare(r, item);
		return true;
	default:
		return begin_infill(r, item);
	}
}

void restored_end(struct restored *r)
{
	if (r->infill)
		engine_stop(&r->engine);
	if (r->bare)
		bare_stop(r->bare);
	if (r->image)
		munmap(r->image, r->guest.bytes);
	guest_unmap(&r->guest);
}

const char *restored_record(const struct bench *b, const struct pattern *pattern,
			    enum backing backing, const char *path)
{
	static struct engine e;
	struct engine_settings s = { .image = b->content.path,
				     .fill = INFILL_FILL_NONE,
				     .record = path,
				     .record_pages = pattern->count };
	struct guest guest;
	struct touch touch = { .pattern = pattern, .threads = 1 };
	struct touched touched;
	struct touch_team *team;

	guest_map(&guest, backing, b->content.bytes, -1);
	if (engine_start(&e, &s, &guest)) {
		guest_unmap(&guest);
		return e.why;
	}
	touch.base = guest.base;
	touch.page = guest.page;
	team = touch_prepare(1, pattern->count);
	touch_go(team, &touch, &touched);
	touch_dismiss(team);
	engine_wait(&e, INFILL_WAIT_RECORDED);
	engine_stop(&e);
	guest_unmap(&guest);
	return NULL;
}
