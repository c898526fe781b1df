/* SPDX-License-Identifier: MIT */
/*
 * error.h: how failures are reported: one line on stderr, by whoever knows
 * what failed and why.  Callers only hand the code on.
 */
#ifndef INFILL_VMM_ERROR_H
#define INFILL_VMM_ERROR_H

/*
 * Print `infill-vmm: what: why` and return CODE, a -errno.  FORMAT has no
 * newline; one that ends in ": %m" gets the text of CODE.  Any thread.
 */
int vmm_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

#endif
