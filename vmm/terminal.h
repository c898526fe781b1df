/* SPDX-License-Identifier: MIT */
/*
 * terminal.h: the person's terminal, if there is one, becomes the guest's console.
 */
#ifndef INFILL_VMM_TERMINAL_H
#define INFILL_VMM_TERMINAL_H

/*
 * Pass on each key at once, and leave echo and line editing to the guest; Ctrl-C
 * and the like stay the host's.  Undone by terminal_restore().
 */
void terminal_set(void);
void terminal_restore(void);

#endif
