/* SPDX-License-Identifier: MIT */
/*
 * clock.h: the timers and the clock of a Linux guest, which go on when it is restored
 * (infill-vmm.1), as if no time had passed since it was saved.  Nothing here depends on
 * how fast a machine is: what the guest's clock may have gone is what this host's went
 * while there was a VMM to run the guest.
 */
#ifndef LAB_PROGRAMS_CLOCK_H
#define LAB_PROGRAMS_CLOCK_H

#include "guest.h"

/* What the guest's clock said, after @asked and before @said; both are now()'s. */
struct clock {
	double guest, asked, said; /* seconds */
};

/*
 * Ask for it, behind a sleep on each of the guest's CPUs.  False when one does not end in
 * time, when the CPUs are not so many, or their clocks disagree.
 */
bool ask_clock(struct guest *guest, const char *cpus, struct clock *clock);

/* Have a timer armed on each CPU; the next ask_clock() waits for them first. */
bool arm_timers(struct guest *guest);

/* Whether the clock went from FROM to TO by LEAST to MOST seconds, or nearly. */
bool clock_went(const struct clock *from, const struct clock *to, double least, double most);

#endif
