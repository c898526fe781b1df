/* SPDX-License-Identifier: MIT */
/*
 * zero.c: find pages that are zero (image_is_zero(), image_zero_map()).
 * Every page that is installed passes here: most are told by their first
 * word, and for the rest memcmp(3) is the widest loop that the CPU has.
 * Internal; may change freely.
 */
#include <stdint.h>
#include <string.h>

#include "image.h"
#include "sigbus.h"

bool image_is_zero(const void *buffer, size_t length)
{
	uint64_t first;

	if (!length)
		return true;
	memcpy(&first, buffer, sizeof(first));
	/* All words equal the first one if the buffer equals itself moved by a word. */
	return !first && !memcmp(buffer, (const char *)buffer + sizeof(first),
				 length - sizeof(first));
}

#define AHEAD 16 /* pages whose first word is fetched before it is looked at */

struct look {
	const char *at;
	size_t page, count;
	bool *zero;
};

static void look_at(void *arg)
{
	const struct look *look = arg;

	/* Most pages are told by their first word, so waiting for it is all there is to do. */
	for (size_t i = 0; i < look->count && i < AHEAD; i++)
		__builtin_prefetch(look->at + i * look->page);
	for (size_t i = 0; i < look->count; i++) {
		if (i + AHEAD < look->count)
			__builtin_prefetch(look->at + (i + AHEAD) * look->page);
		look->zero[i] = image_is_zero(look->at + i * look->page, look->page);
	}
}

int image_zero_map(const void *mapped, size_t page, size_t count, bool *zero)
{
	struct look look = { mapped, page, count, zero };

	return sigbus_guard(mapped, page * count, look_at, &look);
}
