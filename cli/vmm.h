/* SPDX-License-Identifier: MIT */
/*
 * vmm.h: can a library be preloaded into a program?  Found out before the
 * program runs, because a loader that may not preload says nothing.
 */
#ifndef CLI_VMM_H
#define CLI_VMM_H

/*
 * Find PROGRAM as execvp(3) does and look at its file.  CLI_OK, or CLI_FAILED
 * after a message: not found, statically linked, of another architecture,
 * set-user-ID or with file capabilities.
 */
int vmm_check(const char *program);

#endif
