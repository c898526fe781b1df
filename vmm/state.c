/* SPDX-License-Identifier: MIT */
/*
 * state.c: the state file, version 1; all numbers little-endian:
 *
 *   offset size
 *        0    8  magic "infillvm"
 *        8    4  version, 1
 *       12    4  architecture: 1 x86-64, 2 arm64
 *       16    8  bytes of guest memory
 *       24    4  number of vCPUs
 *       28    4  bytes of the header, 48: the records begin here
 *       32    8  bytes of all records, N
 *       40    8  XXH3, 64 bits, of the records, with that of the 40 bytes before as
 *                seed
 *       48    N  records: kind, index, bytes of data (4 each), 4 of zero, data,
 *                zeros up to a multiple of 8
 *
 * The file has no further bytes, at most 1024 records, and no kind and index twice.
 * Every change of this needs another version.  A file comes from wherever its user got
 * it: trust none of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL /* no run-time dependency for one function */
#include <xxhash.h>

#include "error.h"
#include "state.h"
#include "vm.h"

#define VERSION 1u
#if defined(__x86_64__)
#define ARCHITECTURE 1u
#elif defined(__aarch64__)
#define ARCHITECTURE 2u
#else
#error "give this architecture a number"
#endif
/* A vCPU's is some 20 KiB; nobody has a reason for more than this. */
#define FILE_MAX (64ull << 20)
/* 16 vCPUs have some 200; each is compared with all others. */
#define RECORDS_MAX 1024

static const char magic[8] = { 'i', 'n', 'f', 'i', 'l', 'l', 'v', 'm' };

struct header {
	char magic[8];
	uint32_t version, architecture;
	uint64_t memory_bytes;
	uint32_t vcpus, length;
	uint64_t bytes, checksum;
};

struct record {
	uint32_t kind, index, bytes, zero;
	uint8_t data[];
};

struct state {
	struct header header; /* of a file that was read */
	uint8_t *records;     /* as in the file */
	size_t count, bytes, capacity;
};

static size_t padded(size_t bytes)
{
	return (bytes + 7) & ~(size_t)7;
}

struct state *state_new(void)
{
	return calloc(1, sizeof(struct state));
}

void state_free(struct state *state)
{
	if (state)
		free(state->records);
	free(state);
}

/* ---- records -------------------------------------------------------------------- */

static int grow(struct state *state, size_t bytes)
{
	size_t capacity = state->capacity ? state->capacity : 4096;
	uint8_t *records;

	while (capacity < state->bytes + bytes)
		capacity *= 2;
	if (capacity == state->capacity)
		return 0;
	records = realloc(state->records, capacity);
	if (!records)
		return vmm_error(-ENOMEM, "state: %m");
	state->records = records;
	state->capacity = capacity;
	return 0;
}

int state_add(struct state *state, uint32_t kind, uint32_t index, const void *data, size_t bytes)
{
	const size_t length = sizeof(struct record) + padded(bytes);
	struct record *record;
	int err;

	if (bytes > FILE_MAX || state->count == RECORDS_MAX)
		return vmm_error(-EFBIG, "state: a record of %zu bytes is too much", bytes);
	err = grow(state, length);
	if (err)
		return err;
	record = (void *)(state->records + state->bytes);
	memset(record, 0, length);
	record->kind = kind;
	record->index = index;
	record->bytes = (uint32_t)bytes;
	memcpy(record->data, data, bytes);
	state->bytes += length;
	state->count++;
	return 0;
}

/* The record at offset AT, and the next one's offset; NULL when it does not fit, or is none. */
static const struct record *record_at(const struct state *state, size_t at, size_t *next)
{
	const struct record *record = (const void *)(state->records + at);
	size_t left = state->bytes - at;

	if (left < sizeof(*record) || record->zero || record->bytes > left ||
	    padded(record->bytes) > left - sizeof(*record))
		return NULL;
	*next = at + sizeof(*record) + padded(record->bytes);
	return record;
}

static const struct record *find(const struct state *state, uint32_t kind, uint32_t index,
				 size_t end)
{
	const struct record *record;

	for (size_t at = 0; at < end;) {
		record = record_at(state, at, &at);
		if (!record)
			return NULL;
		if (record->kind == kind && record->index == index)
			return record;
	}
	return NULL;
}

const void *state_get(const struct state *state, uint32_t kind, uint32_t index, size_t *bytes)
{
	const struct record *record = find(state, kind, index, state->bytes);

	if (!record)
		return NULL;
	*bytes = record->bytes;
	return record->data;
}

int state_get_fixed(const struct state *state, uint32_t kind, uint32_t index, void *data,
		    size_t bytes)
{
	size_t found = 0;
	const void *from = state_get(state, kind, index, &found);

	if (!from)
		return vmm_error(-EBADMSG, "state: record %c%u of %u: missing", kind >> 8 & 0x7f,
				 kind & 0xff, index);
	if (found != bytes)
		return vmm_error(-EBADMSG, "state: record %c%u of %u: %zu bytes, not %zu",
				 kind >> 8 & 0x7f, kind & 0xff, index, found, bytes);
	memcpy(data, from, bytes);
	return 0;
}

static uint64_t checksum(const struct header *h, const uint8_t *records)
{
	return XXH3_64bits_withSeed(records, h->bytes,
				    XXH3_64bits(h, offsetof(struct header, checksum)));
}

/* ---- the file -------------------------------------------------------------------- */

/* Each record is whole, has a name of its own, and is padded with zeros. */
static int check_records(struct state *state, const char *path)
{
	static const uint8_t zeros[8];

	for (size_t at = 0, next; at < state->bytes; at = next) {
		const struct record *record = record_at(state, at, &next);

		if (!record ||
		    memcmp(record->data + record->bytes, zeros, padded(record->bytes) - record->bytes))
			return vmm_error(-EBADMSG, "%s: damaged: the record at %zu", path, at);
		if (state->count++ == RECORDS_MAX)
			return vmm_error(-EBADMSG, "%s: damaged: more than %u records", path,
					 RECORDS_MAX);
		if (find(state, record->kind, record->index, at))
			return vmm_error(-EBADMSG, "%s: damaged: two records %c%u of %u", path,
					 record->kind >> 8 & 0x7f, record->kind & 0xff,
					 record->index);
	}
	return 0;
}

static int check_header(const struct header *h, uint64_t file_bytes, const char *path)
{
	if (memcmp(h->magic, magic, sizeof(magic)))
		return vmm_error(-EBADMSG, "%s: not a state file", path);
	if (h->version != VERSION)
		return vmm_error(-EPROTO, "%s: version %u: only %u is known", path, h->version,
				 VERSION);
	if (h->architecture != ARCHITECTURE)
		return vmm_error(-EPROTO, "%s: of another architecture", path);
	if (h->length != sizeof(*h) || h->bytes != file_bytes - sizeof(*h))
		return vmm_error(-EBADMSG, "%s: damaged: not as long as it says", path);
	if (!h->vcpus || h->vcpus > VCPUS_MAX)
		return vmm_error(-EBADMSG, "%s: damaged: %u vCPUs", path, h->vcpus);
	if (!h->memory_bytes || h->memory_bytes % 4096 || h->memory_bytes > INT64_MAX)
		return vmm_error(-EBADMSG, "%s: damaged: %llu bytes of memory", path,
				 (unsigned long long)h->memory_bytes);
	return 0;
}

static int read_records(struct state *state, int fd, const char *path)
{
	const struct header *h = &state->header;

	state->bytes = state->capacity = h->bytes;
	state->records = malloc(state->bytes ? state->bytes : 1);
	if (!state->records)
		return vmm_error(-ENOMEM, "%s: %m", path);
	if (file_read(fd, state->records, state->bytes, sizeof(*h)))
		return vmm_error(-errno, "%s: %m", path);
	if (checksum(h, state->records) != h->checksum)
		return vmm_error(-EBADMSG, "%s: damaged: its checksum is wrong", path);
	return check_records(state, path);
}

static int read_open(struct state *state, int fd, const char *path)
{
	struct stat st;
	int err;

	if (fstat(fd, &st))
		return vmm_error(-errno, "%s: %m", path);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(state->header) ||
	    (uint64_t)st.st_size > FILE_MAX)
		return vmm_error(-EBADMSG, "%s: not a state file", path);
	if (file_read(fd, &state->header, sizeof(state->header), 0))
		return vmm_error(-errno, "%s: %m", path);
	err = check_header(&state->header, (uint64_t)st.st_size, path);
	return err ? err : read_records(state, fd, path);
}

int state_read(struct state **state, const char *path)
{
	struct state *s = state_new();
	int err, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	*state = NULL;
	if (fd < 0 || !s)
		err = vmm_error(-errno, "%s: %m", path);
	else
		err = read_open(s, fd, path);
	if (fd >= 0)
		close(fd);
	if (err)
		state_free(s);
	else
		*state = s;
	return err;
}

int state_write(const struct state *state, const struct vm *vm, const char *path,
		struct new_file *file)
{
	struct header h = {
		.version = VERSION, .architecture = ARCHITECTURE,
		.memory_bytes = vm->memory_bytes, .vcpus = vm->vcpus, .length = sizeof(h),
		.bytes = state->bytes,
	};
	int err = file_new(file, path);

	if (err)
		return err;
	memcpy(h.magic, magic, sizeof(magic));
	h.checksum = checksum(&h, state->records);
	if (file_write(file->fd, &h, sizeof(h), 0) ||
	    file_write(file->fd, state->records, state->bytes, sizeof(h)))
		err = -errno;
	return file_complete(file, err);
}

uint64_t state_memory_bytes(const struct state *state)
{
	return state->header.memory_bytes;
}

unsigned state_vcpus(const struct state *state)
{
	return state->header.vcpus;
}

/* ---- layout ---------------------------------------------------------------------- */

static size_t layout_of(const struct vm *vm, struct state_region *layout)
{
	for (unsigned i = 0; i < vm->regions; i++)
		layout[i] = (struct state_region){
			vm->region[i].gpa, vm->region[i].bytes, vm->region[i].offset,
		};
	return vm->regions * sizeof(*layout);
}

int state_add_layout(struct state *state, const struct vm *vm)
{
	struct state_region layout[REGIONS_MAX];
	size_t bytes = layout_of(vm, layout);

	return state_add(state, STATE_LAYOUT, 0, layout, bytes);
}

int state_check_layout(const struct state *state, const struct vm *vm)
{
	struct state_region layout[REGIONS_MAX];
	size_t bytes = layout_of(vm, layout), found = 0;
	const void *saved = state_get(state, STATE_LAYOUT, 0, &found);

	if (!saved || found != bytes || memcmp(saved, layout, bytes))
		return vmm_error(-EPROTO, "state: memory lies elsewhere than in this version");
	return 0;
}
