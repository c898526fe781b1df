/* SPDX-License-Identifier: MIT */
/*
 * terminal.c: see terminal.h.
 */
#include <stdbool.h>
#include <termios.h>
#include <unistd.h>

#include "terminal.h"

static struct termios before;
static bool changed;

void terminal_set(void)
{
	struct termios now;

	if (tcgetattr(STDIN_FILENO, &before))
		return; /* no terminal */
	now = before;
	now.c_iflag &= ~(tcflag_t)(ICRNL | IXON);
	now.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	changed = !tcsetattr(STDIN_FILENO, TCSANOW, &now);
}

void terminal_restore(void)
{
	if (changed)
		tcsetattr(STDIN_FILENO, TCSANOW, &before);
	changed = false;
}
