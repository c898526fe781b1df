/* SPDX-License-Identifier: MIT */
/*
 * vmm.c: can a library be preloaded into a program?  A new reason why not is
 * a new line in reason().
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cli.h"
#include "vmm.h"

#if defined(__x86_64__)
#define OUR_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define OUR_MACHINE EM_AARCH64
#else
#error "vmm.c: name this architecture's ELF machine"
#endif

/* 0, or the errno that execvp() would give. */
static int executable(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return errno;
	return !S_ISREG(st.st_mode) || access(path, X_OK) ? EACCES : 0;
}

static int find(const char *program, char path[PATH_MAX])
{
	const char *dirs = getenv("PATH");
	int error = ENOENT, tried;

	if (strchr(program, '/')) {
		snprintf(path, PATH_MAX, "%s", program);
		return executable(path);
	}
	for (dirs = dirs ? dirs : "/usr/bin:/bin"; *dirs;) {
		int length = (int)strcspn(dirs, ":");

		snprintf(path, PATH_MAX, "%.*s%s%s", length, dirs, length ? "/" : "", program);
		tried = executable(path);
		if (!tried)
			return 0;
		if (tried == EACCES)
			error = EACCES;
		dirs += length + (dirs[length] == ':');
	}
	return error;
}

/* Does the program name a loader?  Only that can preload. */
static bool has_loader(int fd, const Elf64_Ehdr *elf)
{
	Elf64_Phdr header;

	for (unsigned i = 0; i < elf->e_phnum; i++) {
		off_t at = (off_t)(elf->e_phoff + i * sizeof(header));

		if (pread(fd, &header, sizeof(header), at) != sizeof(header))
			return false;
		if (header.p_type == PT_INTERP)
			return true;
	}
	return false;
}

/* Does the kernel give the program rights that the caller has not?  Then nothing is preloaded. */
static bool gains_rights(int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return false;
	return (st.st_mode & S_ISUID && st.st_uid != geteuid()) ||
	       (st.st_mode & S_ISGID && st.st_mode & S_IXGRP && st.st_gid != getegid()) ||
	       (geteuid() && fgetxattr(fd, "security.capability", NULL, 0) > 0);
}

/* Why nothing can be preloaded into the program; NULL: it can. */
static const char *reason(int fd)
{
	Elf64_Ehdr elf;
	ssize_t n = pread(fd, &elf, sizeof(elf), 0);

	if (n >= 2 && !memcmp(&elf, "#!", 2))
		return NULL; /* what it runs inherits the environment */
	if (gains_rights(fd))
		return "is set-user-ID, set-group-ID or has file capabilities, so the kernel lets "
		       "nothing be preloaded into it: run a copy without them";
	if (n < (ssize_t)sizeof(elf) || memcmp(elf.e_ident, ELFMAG, SELFMAG))
		return "is neither a program nor a script with #!";
	if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_machine != OUR_MACHINE)
		return "is a program for another architecture than infill's";
	if (!has_loader(fd, &elf))
		return "is statically linked, so nothing can be preloaded into it: use a "
		       "dynamically "
		       "linked VMM, or one that speaks to `infill serve`";
	return NULL;
}

int vmm_check(const char *program)
{
	char path[PATH_MAX];
	const char *why;
	int fd, error = find(program, path);

	if (error)
		return cli_fail("%s: cannot run it: %s", program, strerror(error));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return CLI_OK; /* executable and not readable: the shim's report will tell */
	why = reason(fd);
	close(fd);
	return why ? cli_fail("%s: %s", program, why) : CLI_OK;
}
