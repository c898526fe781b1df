/* SPDX-License-Identifier: MIT */
/*
 * vmm_state_fuzz.c: infill-vmm's state file from bytes of anybody.  What is accepted
 * must be whole: each record can be found, and lies inside of the file.  The checksum
 * is made right first, as it would keep the fuzzer from what lies behind it.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "state.h"

#define HEADER 48u
#define CHECKSUM_AT 40u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Instead of error.c, which would print. */
int vmm_error(int code, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return code;
}

static void seal(uint8_t *bytes, size_t size)
{
	uint64_t sum;

	if (size < HEADER)
		return;
	sum = XXH3_64bits_withSeed(bytes + HEADER, size - HEADER, XXH3_64bits(bytes, CHECKSUM_AT));
	memcpy(bytes + CHECKSUM_AT, &sum, sizeof(sum));
}

/* A few names that the corpus has, and one that it has not. */
static void look(const struct state *state)
{
	for (uint32_t kind = 'A' << 8; kind < ('A' << 8) + 4; kind++)
		for (uint32_t index = 0; index < 3; index++) {
			size_t bytes = 0;
			const uint8_t *record = state_get(state, kind, index, &bytes);

			/* Reads every byte, where ASan sees one that is not the file's. */
			if (record && XXH3_64bits(record, bytes) == 0)
				abort(); /* no input is known for it */
		}
	if (!state_vcpus(state) || !state_memory_bytes(state))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	struct state *state;
	uint8_t *bytes = malloc(size + 1);
	char path[32];

	if (fd < 0)
		fd = memfd_create("state", MFD_CLOEXEC);
	memcpy(bytes, data, size);
	seal(bytes, size);
	if (ftruncate(fd, 0) || pwrite(fd, bytes, size, 0) != (ssize_t)size)
		abort();
	free(bytes);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (!state_read(&state, path))
		look(state);
	else if (state)
		abort();
	state_free(state);
	return 0;
}
