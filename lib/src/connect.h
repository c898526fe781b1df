/* SPDX-License-Identifier: MIT */
/*
 * connect.h: a connection to a pager, whatever is said over it.  Internal.
 */
#ifndef INFILL_CONNECT_H
#define INFILL_CONNECT_H

#include <stdint.h>

/* Connect to PATH, waiting until DEADLINE (CLOCK_MONOTONIC ns; UINT64_MAX: none). An fd or -errno. */
int pager_connect(const char *path, uint64_t deadline);

#endif
