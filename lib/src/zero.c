/* SPDX-License-Identifier: MIT */
/*
 * zero.c: find pages that are zero (image_is_zero()).
 * Every page that is installed passes here: most are told by their first
 * word, and for the rest memcmp(3) is the widest loop that the CPU has.
 * Internal; may change freely.
 */
#include <stdint.h>
#include <string.h>

#include "image.h"

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
