// SPDX-License-Identifier: MIT
/*
 * An in-memory key-value store: an open-addressed index over records of one page each.
 *
 * All content follows from constants, so that a copy of this file run on the host foretells every
 * answer of the guest (reference.c), and a wrong byte can be named. Each record's words are the
 * output of a generator seeded by its key; an update adds to one word, and the record's version
 * says how often, so that a page from before the update is as wrong as a page of zeros.
 *
 * Keep the work per byte light: two additions a word. Under emulation, arithmetic would otherwise
 * hide what the program is for, which is to wait for memory.
 */
#include <sys/mman.h>

#include "store.h"

#define INDEX_SLOTS	65536u		/* a power of two, twice the records */
#define SEED		0x696e66696c6cull
#define GROUP_PAGES	4u		/* of one share: see store_check_part() */

struct store {
	struct record *records;
	uint32_t index[INDEX_SLOTS];	/* a record's number + 1, or 0 */
	uint64_t cursor;		/* the key that the next request starts from */
};

/* One step of splitmix64. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t key_of(uint32_t page)
{
	return mix(SEED + page);
}

/* Never zero, so that a zero page is wrong in each of its words. */
static uint64_t word_of(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* The order of words counts: the second sum adds up the first one's history. */
static uint64_t record_sum(const struct record *record)
{
	uint64_t a = record->key ^ record->next, b = record->version;

	for (uint32_t i = 0; i < RECORD_WORDS; i++) {
		a += record->words[i];
		b += a;
	}
	return a ^ (b << 1 | b >> 63);
}

static void record_fill(struct record *record, uint64_t key, uint64_t next)
{
	uint64_t state = key | 1;

	record->key = key;
	record->version = 0;
	record->next = next;
	for (uint32_t i = 0; i < RECORD_WORDS; i++)
		record->words[i] = word_of(&state);
	record->sum = record_sum(record);
}

/* Which word the update to @version writes. */
static uint32_t updated_word(uint64_t key, uint64_t version)
{
	return mix(key ^ version) % RECORD_WORDS;
}

static void record_update(struct record *record)
{
	record->version++;
	record->words[updated_word(record->key, record->version)] += record->version;
	record->sum = record_sum(record);
}

/* What updates 1 to @version have added to word @i. */
static uint64_t updates_of(uint64_t key, uint64_t version, uint32_t i)
{
	uint64_t sum = 0;

	for (uint64_t v = 1; v <= version && v <= STORE_RECORDS; v++)
		if (updated_word(key, v) == i)
			sum += v;
	return sum;
}

/* The first differing byte of word @word, as an offset in the page. */
static uint32_t offset_of(uint32_t word, uint64_t diff)
{
	return word * 8 + (uint32_t)__builtin_ctzll(diff) / 8;
}

/*
 * Find the first wrong byte by making the record again; slow, and only run when one is wrong.
 * With key and words right it is in what lies between them, which is named by its start.
 */
static uint32_t record_explain(const struct record *record, uint64_t key)
{
	uint64_t state = key | 1;

	if (record->key != key)
		return offset_of(0, record->key ^ key);
	for (uint32_t i = 0; i < RECORD_WORDS; i++) {
		uint64_t word = word_of(&state) + updates_of(key, record->version, i);

		if (record->words[i] != word)
			return offset_of(4 + i, record->words[i] ^ word);
	}
	return 8;
}

/* Inline, so that who checks alone runs the instructions that bench/vm has always counted. */
static inline int record_check(const struct record *record, uint32_t page, struct store_bad *bad)
{
	if (record->key == key_of(page) && record->sum == record_sum(record))
		return 0;
	*bad = (struct store_bad){ page, record_explain(record, key_of(page)) };
	return -1;
}

static void index_insert(struct store *store, uint64_t key, uint32_t page)
{
	uint32_t slot = key % INDEX_SLOTS;

	while (store->index[slot])
		slot = (slot + 1) % INDEX_SLOTS;
	store->index[slot] = page + 1;
}

/* Compare with the key in the record itself, as a real table does: the index only hints. */
static int index_find(const struct store *store, uint64_t key, uint32_t *page)
{
	uint32_t slot = key % INDEX_SLOTS;

	for (uint32_t n = 0; n < INDEX_SLOTS && store->index[slot]; n++) {
		*page = store->index[slot] - 1;
		if (store->records[*page].key == key)
			return 0;
		slot = (slot + 1) % INDEX_SLOTS;
	}
	return -1;
}

/* Fisher-Yates: one cycle through all records, in an order that no readahead can guess. */
static void shuffle(uint32_t *order)
{
	for (uint32_t i = 0; i < STORE_RECORDS; i++)
		order[i] = i;
	for (uint32_t i = STORE_RECORDS - 1; i > 0; i--) {
		uint32_t j = mix(~SEED + i) % (i + 1), t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
}

static void *map(uint64_t size)
{
	void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? 0 : p;
}

struct store *store_create(void)
{
	static uint32_t order[STORE_RECORDS], next[STORE_RECORDS];
	struct store *store = map(sizeof(*store));

	if (!store)
		return 0;
	store->records = map((uint64_t)STORE_RECORDS * sizeof(struct record));
	if (!store->records)
		return 0;
	shuffle(order);
	for (uint32_t i = 0; i < STORE_RECORDS; i++)
		next[order[i]] = order[(i + 1) % STORE_RECORDS];
	/* In the order of addresses: the guest's kernel gives out memory in the order of touches. */
	for (uint32_t page = 0; page < STORE_RECORDS; page++) {
		record_fill(&store->records[page], key_of(page), key_of(next[page]));
		index_insert(store, key_of(page), page);
	}
	store->cursor = key_of(order[0]);
	return store;
}

/* @answer, and one more record: their order counts. */
static uint64_t add_sum(uint64_t answer, const struct record *record)
{
	return (answer << 7 | answer >> 57) + record->sum;
}

int store_work(struct store *store, uint64_t *sum, struct store_bad *bad)
{
	uint64_t key = store->cursor, answer = 0;
	uint32_t page = 0;

	for (uint32_t step = 0; step < STORE_CHAIN; step++) {
		struct record *record;

		if (index_find(store, key, &page)) {
			*bad = (struct store_bad){ .page = page, .offset = 0 };
			return -1;
		}
		record = &store->records[page];
		if (record_check(record, page, bad))
			return -1;
		if (step % STORE_UPDATE == 0)
			record_update(record);
		answer = add_sum(answer, record);
		key = record->next;
	}
	store->cursor = key;
	*sum = answer;
	return 0;
}

int store_check(const struct store *store, uint64_t *sum, struct store_bad *bad)
{
	uint64_t answer = 0;

	for (uint32_t page = 0; page < STORE_RECORDS; page++) {
		if (record_check(&store->records[page], page, bad))
			return -1;
		answer = add_sum(answer, &store->records[page]);
	}
	*sum = answer;
	return 0;
}

int store_check_part(const struct store *store, uint32_t part, uint32_t parts,
		     struct store_bad *bad)
{
	for (uint32_t page = 0; page < STORE_RECORDS; page++)
		if (page / GROUP_PAGES % parts == part &&
		    record_check(&store->records[page], page, bad))
			return -1;
	return 0;
}

uint64_t store_sum(const struct store *store)
{
	uint64_t answer = 0;

	for (uint32_t page = 0; page < STORE_RECORDS; page++)
		answer = add_sum(answer, &store->records[page]);
	return answer;
}
