/* SPDX-License-Identifier: MIT */
/*
 * pager.h: `infill serve` beside the guests of guest.h, one at a time, and a child that
 * kills its worker with SIGKILL again and again.  One thread.
 */
#ifndef LAB_PROGRAMS_PAGER_H
#define LAB_PROGRAMS_PAGER_H

#include <stdbool.h>

#define INFILL "/files/infill"
#define PAGER "/tmp/pager"

/*
 * Serve MEMORY at PAGER, @rate MiB a second: so slowly that a guest asks for most, or that most
 * stays missing.  KILLED: its workers are.
 */
bool start_pager(bool killed, const char *rate);

/* Ask it to end.  True when it did in order, and its workers were killed if they should be. */
bool stop_pager(bool killed);

/* Kill it, supervisor and worker, once it serves a VM.  True when it was there to be killed. */
bool lose_pager(void);

#endif
