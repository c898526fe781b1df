/* SPDX-License-Identifier: MIT */
/*
 * options.c: copy a caller's option struct.  Internal; the rules are ABI
 * (infill.h, Conventions).
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "err.h"
#include "options.h"

/* Refused while it means nothing, so that it can mean something later. */
static int check_reserved(const void *options, size_t reserved, const char *what)
{
	uint32_t value = 0;

	if (reserved)
		memcpy(&value, (const char *)options + reserved, sizeof(value));
	return value ? err_set(-EINVAL, "%s: reserved is %u: it must be 0", what, value) : 0;
}

int options_copy(void *to, size_t size, const void *from, const char *what, size_t reserved)
{
	size_t given;

	memset(to, 0, size);
	if (!from) {
		memcpy(to, &size, sizeof(size));
		return 0;
	}
	memcpy(&given, from, sizeof(given));
	if (given < sizeof(given) || given > 65536)
		return err_set(-EINVAL, "%s: size is %zu: set it to sizeof(struct %s)", what, given, what);
	for (size_t i = size; i < given; i++)
		if (((const unsigned char *)from)[i])
			return err_set(-E2BIG, "%s: has options that libinfill does not know", what);
	memcpy(to, from, given < size ? given : size);
	memcpy(to, &size, sizeof(size));
	return check_reserved(to, reserved, what);
}
