/* SPDX-License-Identifier: MIT */
/*
 * trace_fuzz.c: hostile trace files (libFuzzer).  Corpus: corpus/trace/.
 *
 * The first byte says how much of the file is put right before it is parsed,
 * for chance finds no checksum: bit 0 the checksum; bit 1 the magic, version,
 * lengths and image too, so that only the pages are the fuzzer's.
 * What is accepted must be runs inside the image that name no page twice.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "trace.h"

#define PAGES 1000u
#define PAGE 4096u
#define HEADER 56u
#define SUM 8u

static const struct infill_identity image = {
	.bytes = PAGES * PAGE, .inode = 12345, .mtime_sec = -7, .mtime_nsec = 999999999,
};

static void put(uint8_t *at, uint64_t number, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(number >> 8 * i);
}

static void put_header(uint8_t *file, size_t length)
{
	memcpy(file, "infilltr", 8);
	put(file + 8, 1, 4);
	put(file + 12, HEADER, 4);
	put(file + 16, image.bytes, 8);
	put(file + 24, image.inode, 8);
	put(file + 32, (uint64_t)image.mtime_sec, 8);
	put(file + 40, (uint64_t)image.mtime_nsec, 8);
	put(file + 48, (length - HEADER - SUM) / 4, 8);
}

static void repair(uint8_t *file, size_t length, uint8_t how)
{
	if (how & 2 && length >= HEADER + SUM)
		put_header(file, length);
	if (how & 1 && length >= SUM)
		put(file + length - SUM, XXH3_64bits(file, length - SUM), SUM);
}

static void verify_run(const struct trace_run *run, uint8_t *seen)
{
	if (!run->length || run->length % PAGE || run->offset % PAGE ||
	    run->offset >= image.bytes || run->length > image.bytes - run->offset)
		abort();
	for (uint64_t at = run->offset; at < run->offset + run->length; at += PAGE)
		if (seen[at / PAGE]++)
			abort();
}

static void verify(const struct trace *trace)
{
	uint8_t seen[PAGES] = { 0 };
	uint64_t bytes = 0;

	for (size_t i = 0; i < trace->count; i++) {
		verify_run(&trace->run[i], seen);
		bytes += trace->run[i].length;
	}
	if (bytes != trace->bytes)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct trace trace;
	uint8_t *file;

	if (!size)
		return 0;
	file = malloc(size - 1); /* its own, so that a read past its end is seen */
	if (!file && size > 1)
		return 0;
	if (size > 1)
		memcpy(file, data + 1, size - 1);
	repair(file, size - 1, data[0]);
	if (!trace_parse(&trace, file, size - 1, &image, "trace"))
		verify(&trace);
	else if (trace.run || trace.count)
		abort();
	trace_free(&trace);
	free(file);
	return 0;
}
