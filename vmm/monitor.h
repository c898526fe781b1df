/* SPDX-License-Identifier: MIT */
/*
 * monitor.h: what main does while a VM runs.
 */
#ifndef INFILL_VMM_MONITOR_H
#define INFILL_VMM_MONITOR_H

#include "vm.h"

/*
 * Run VM until the guest powers off or resets, it fails, a snapshot was taken, or a
 * signal asks for its end.  CONTROL: path of the control socket, or NULL.  The exit
 * status: 0 after a power-off or a snapshot, else 1.
 *
 * Until this is called such a signal ends the process at once, as it does any other: what
 * comes before may take long, and must leave nothing that has to be undone.
 */
int monitor_run(struct vm *vm, const char *control);

#endif
