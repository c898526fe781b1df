// SPDX-License-Identifier: MIT
/*
 * pager.c: the pager's process, and the one that kills its workers.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "pager.h"

#define KILLS_WAIT 1000 /* a worker lives at most so small a part of what is waited for an answer */

/* `infill serve`, and who kills its worker. */
static struct {
	struct guest server;
	pid_t killer;
	unsigned int *kills; /* shared with it */
} pager;

/* A child of @parent, or 0. */
static pid_t child_of(pid_t parent)
{
	DIR *processes = opendir("/proc");
	struct dirent *entry;
	pid_t child = 0;

	while (processes && !child && (entry = readdir(processes))) {
		char path[300], name[64];
		int pid, its_parent;
		FILE *stat;

		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		stat = fopen(path, "r");
		if (stat && fscanf(stat, "%d (%63[^)]) %*c %d", &pid, name, &its_parent) == 3 &&
		    its_parent == parent)
			child = pid;
		if (stat)
			fclose(stat);
	}
	if (processes)
		closedir(processes);
	return child;
}

/* Moments are as random as an emulated machine is. */
static void kill_workers(void)
{
	unsigned int random = 1, most = (unsigned int)(wait_seconds() * 1e6 / KILLS_WAIT);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		pid_t worker = child_of(pager.server.pid);

		random = random * 1103515245u + 12345u;
		usleep(most / 10 + random / 65536 * 16 % most);
		if (worker && !kill(worker, SIGKILL))
			++*pager.kills;
	}
}

bool start_pager(bool killed, const char *rate)
{
	char *words[] = { INFILL, "serve", "--socket", PAGER, "--image", MEMORY, "--rate",
			  (char *)rate, "--verbose", NULL };
	double deadline = now() + wait_seconds();

	pager.kills = mmap(NULL, sizeof(*pager.kills), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (pager.kills == MAP_FAILED)
		return false;
	start(&pager.server, words);
	while (access(PAGER, F_OK) && now() < deadline)
		usleep(10000);
	pager.killer = killed ? fork() : -1;
	if (pager.killer == 0)
		kill_workers();
	return !killed || pager.killer > 0;
}

bool stop_pager(bool killed)
{
	bool good;

	if (killed) {
		kill(pager.killer, SIGKILL);
		waitpid(pager.killer, NULL, 0);
		printf("# %u workers were killed\n", *pager.kills);
	}
	good = killed == (*pager.kills > 0);
	munmap(pager.kills, sizeof(*pager.kills));
	kill(pager.server.pid, SIGTERM);
	return finish(&pager.server) == 0 && good;
}

bool lose_pager(void)
{
	bool good = expect(&pager.server, "infill: VM 1 from pid ");
	pid_t worker = child_of(pager.server.pid);

	good = good && worker && !kill(pager.server.pid, SIGKILL) && !kill(worker, SIGKILL);
	munmap(pager.kills, sizeof(*pager.kills));
	finish(&pager.server);
	unlink(PAGER);
	return good;
}
