/* SPDX-License-Identifier: MIT */
/*
 * sigbus.h: look at a mapped file that may be cut under the reader.
 * Internal.
 */
#ifndef INFILL_SIGBUS_H
#define INFILL_SIGBUS_H

#include <stdbool.h>
#include <stddef.h>

/* Has infill_sigbus_install() been called in this process?  Any thread. */
bool sigbus_installed(void);

/*
 * Call LOOK(ARG), which may look at [AT, AT + LENGTH) and is left in the
 * middle if that raises SIGBUS: it must hold no lock and own no memory.
 * 0; -EIO: it was left.  Any thread; does not nest.
 */
int sigbus_guard(const void *at, size_t length, void (*look)(void *arg), void *arg);

#endif
