/* SPDX-License-Identifier: MIT */
/*
 * warm.c: read ahead what a trace names.  Internal.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "thread.h"
#include "trace.h"
#include "warm.h"

#define GAP (16u << 10) /* bytes between two runs that are read as well: one request, not two */

struct warm {
	struct infill_image *image;
	char *path; /* of the trace */
	pthread_t thread;
	atomic_bool stop;
};

static void read_ahead(struct warm *w, const struct trace *t)
{
	for (size_t i = 0; i < t->count && !atomic_load(&w->stop);) {
		uint64_t from = t->run[i].offset, end = from + t->run[i].length;

		while (++i < t->count && t->run[i].offset >= end && t->run[i].offset - end <= GAP)
			end = t->run[i].offset + t->run[i].length;
		image_will_need(w->image, from, end - from);
	}
}

static void *warm_thread(void *arg)
{
	struct infill_identity identity;
	struct warm *w = arg;
	struct trace trace;

	infill_image_identity(w->image, &identity);
	if (trace_load(&trace, w->path, &identity))
		return NULL; /* each session will say why */
	read_ahead(w, &trace);
	trace_free(&trace);
	return NULL;
}

struct warm *warm_start(struct infill_image *image, const char *path)
{
	struct warm *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->image = image;
	w->path = strdup(path);
	if (w->path && !thread_new(&w->thread, warm_thread, w))
		return w;
	free(w->path);
	free(w);
	return NULL;
}

void warm_stop(struct warm *w)
{
	if (!w)
		return;
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
	free(w->path);
	free(w);
}
