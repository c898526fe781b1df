// SPDX-License-Identifier: MIT
/*
 * clock.c: asks a guest for its clock, and compares it with the host's.
 */
#include <stdio.h>
#include <string.h>

#include "clock.h"

/*
 * Two clocks that are calibrated apart go at rates that differ by parts in a thousand, and the
 * clock of an emulated machine by more; one that was not restored is wrong by much more than this.
 */
#define RATE 0.25
#define SLACK_SECONDS 3

bool ask_clock(struct guest *guest, const char *cpus, struct clock *clock)
{
	static const char begin[] = "clock ok ";
	unsigned long long nanoseconds;
	char count[16];

	clock->asked = now();
	if (!ask(guest, "clock\n", begin) ||
	    sscanf(guest->line + strlen(begin), "%15s %llu", count, &nanoseconds) != 2)
		return false;
	clock->said = guest->said;
	clock->guest = (double)nanoseconds / 1e9;
	if (strcmp(count, cpus))
		printf("# it has %s CPUs, not %s\n", count, cpus);
	return !strcmp(count, cpus);
}

bool arm_timers(struct guest *guest)
{
	return ask(guest, "arm\n", "armed ");
}

bool clock_went(const struct clock *from, const struct clock *to, double least, double most)
{
	double went = to->guest - from->guest;
	bool good = went >= 0 && went >= least * (1 - RATE) &&
		    went <= most * (1 + RATE) + SLACK_SECONDS;

	printf("# the guest's clock went %.3f s, and had %.3f to %.3f s to do so\n", went, least, most);
	return good;
}
