/* SPDX-License-Identifier: MIT */
/*
 * systemd.h: libsystemd; built with SYSTEMD=0 there is none, as in a static
 * program for a machine of the lab: no service manager listens.  Internal.
 */
#ifndef INFILL_SYSTEMD_H
#define INFILL_SYSTEMD_H

#ifdef INFILL_NO_SYSTEMD
static inline int sd_notify(int unset_environment, const char *state)
{
	(void)unset_environment;
	(void)state;
	return 0;
}
#else
#include <systemd/sd-daemon.h>
#endif

#endif
