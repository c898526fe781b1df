/* SPDX-License-Identifier: MIT */
/*
 * The guest's service: an in-memory key-value store whose every byte can be foretold.
 *
 * Change the sizes here to give the guest another working set; nothing else knows them but the
 * text of demo.py's table. The reference program (reference.c) follows by itself.
 */
#ifndef GUEST_STORE_H
#define GUEST_STORE_H

#include <stdint.h>

#define STORE_RECORDS	32768u		/* times 4 KiB: 128 MiB of values */
#define STORE_CHAIN	8192u		/* records that one request follows: 32 MiB */
#define STORE_UPDATE	8u		/* every eighth record of a chain is written */
#define RECORD_WORDS	508u

/* One value: a page. @sum covers everything else in it, @next makes a chain through all records. */
struct record {
	uint64_t key;
	uint64_t version;
	uint64_t next;
	uint64_t sum;
	uint64_t words[RECORD_WORDS];
};

/* Where a check failed: byte @offset of page @page (a record's number). */
struct store_bad {
	uint32_t page;
	uint32_t offset;
};

struct store;

/* Return a filled store, or NULL when memory for it cannot be mapped. Never freed. */
struct store *store_create(void);

/*
 * Answer one request: follow the chain for STORE_CHAIN records from where the last request ended,
 * check each, write some. Return 0 and the answer in @sum, or -1 and the first wrong byte in @bad.
 */
int store_work(struct store *store, uint64_t *sum, struct store_bad *bad);

/* Check all records in the order of their pages. Return as store_work() does. */
int store_check(const struct store *store, uint64_t *sum, struct store_bad *bad);

/*
 * Check the share of @part when @parts share all records: each has groups of a few pages all over
 * the store, so that those who check at once do so in neighbouring pages. Return 0, or -1 and the
 * first wrong byte of this share in @bad.
 */
int store_check_part(const struct store *store, uint32_t part, uint32_t parts,
		     struct store_bad *bad);

/* What store_check() has in @sum, of records that were checked. */
uint64_t store_sum(const struct store *store);

#endif
