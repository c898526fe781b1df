/* SPDX-License-Identifier: MIT */
/*
 * error.h: how every part of the VMM says what went wrong.
 */
#ifndef INFILL_VMM_ERROR_H
#define INFILL_VMM_ERROR_H

/*
 * Print "infill-vmm: WHAT: why" on stderr as one line and return CODE, a
 * -errno.  %m in FORMAT is the text of CODE.  Any thread.
 */
int vmm_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The text of this thread's last vmm_error(), "" if none; for the control socket. */
const char *vmm_error_text(void);

#endif
