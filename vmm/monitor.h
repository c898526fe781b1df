/* SPDX-License-Identifier: MIT */
/*
 * monitor.h: what main does while a VM runs.
 */
#ifndef INFILL_VMM_MONITOR_H
#define INFILL_VMM_MONITOR_H

#include "vm.h"

/* Before any thread is started: signals that end the VMM reach monitor_run() only. */
int monitor_init(void);

/*
 * Run VM until the guest powers off or resets, it fails, a snapshot was taken, or a
 * signal asks for its end.  CONTROL: path of the control socket, or NULL.  The exit
 * status: 0 after a power-off or a snapshot, else 1.
 */
int monitor_run(struct vm *vm, const char *control);

#endif
