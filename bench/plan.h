/* SPDX-License-Identifier: MIT */
/*
 * plan.h: what is run, and in which order: round robin over all items of a
 * group in each repetition, in an order that is shuffled per repetition, so
 * that slow changes of the machine meet every contender alike.
 */
#ifndef BENCH_PLAN_H
#define BENCH_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "content.h"
#include "figure.h"
#include "guest.h"
#include "pattern.h"

/* What the command line asked for, and what all groups share. */
struct bench {
	unsigned runs;
	bool quick;
	unsigned threads[4]; /* numbers of faulting threads; 0 ends */
	const char *dir;
	const char *recorded; /* trace of a real guest, or NULL */
	const char *huge_missing; /* why there are no 2 MiB pages, or NULL */
	struct content content;
};

enum contender {
	CONTENDER_MAPPED,       /* a private mapping of the image, read */
	CONTENDER_MAPPED_WRITE, /* the same, written: each touch copies the page */
	CONTENDER_PAGE,         /* example handler: one page per fault, from the mapped image */
	CONTENDER_PAGE_BUFFER,  /* the same from warm anonymous memory */
	CONTENDER_ALL,          /* example handler: everything at the first fault */
	CONTENDER_NONE,         /* infill, demand only */
	CONTENDER_TRACE,        /* infill, demand and recorded trace */
	CONTENDER_FILL,         /* infill, demand and background fill */
	CONTENDERS
};

const char *contender_name(enum contender c);

struct item {
	struct row *row;
	void (*run)(const struct item *item);
	const struct bench *bench;
	enum contender contender;
	enum backing backing;
	const struct pattern *pattern;
	const char *trace; /* file that infill recorded of `pattern` */
	unsigned threads;
	size_t chunk;      /* bytes per call of a bulk item */
	uint64_t gap_ns, rate;
	bool fill, drop, huge;
};

/* Run COUNT items RUNS times.  An item whose row is skipped is not run again. */
void plan_run(struct item *items, size_t count, unsigned runs, const char *what);

/* The groups.  Each ends with its rows and ratios in the table. */
void bulk_run(const struct bench *b);
void demand_run(const struct bench *b);
void underfill_run(const struct bench *b);
void cold_run(const struct bench *b);
void start_run(const struct bench *b);
void pager_run(const struct bench *b);

#endif
