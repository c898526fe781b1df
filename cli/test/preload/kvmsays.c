/* SPDX-License-Identifier: MIT */
/*
 * kvmsays.c: /dev/kvm as another host has it, for the test of `infill doctor`,
 * which runs itself under this and so has all kinds of hosts.  What real KVMs
 * say is looked at in the lab (lib/test/lab/engine.c).  In the environment:
 *
 *   KVM_OPEN=ERRNO       opening /dev/kvm fails
 *   KVM_VM=ERRNO         making a VM fails
 *   KVM_NUMBER=VALUE     capability NUMBER
 *   KVM_MACHINE=NAME     uname(2) says that it is this machine, ...
 *   KVM_RELEASE=TEXT     ... and this release of the kernel
 *   KVM_LOG=TEXT         is a record of the kernel's log, and the only one
 *
 * Not a program: cli/test/doctor has it preloaded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

int open(const char *path, int flags, ...);
int ioctl(int fd, unsigned long request, ...);

static int kvm = -1;

static int number(const char *name)
{
	const char *value = getenv(name);

	return value ? atoi(value) : 0;
}

static int fail(int error)
{
	errno = error;
	return error ? -1 : 0;
}

static int open_log(const char *text)
{
	int fd = memfd_create("log", MFD_CLOEXEC);

	if (fd < 0 || pwrite(fd, text, strlen(text), 0) < 0)
		return -1;
	return fd;
}

__attribute__((visibility("default"))) int uname(struct utsname *name)
{
	int rc = (int)syscall(SYS_uname, name);

	if (getenv("KVM_MACHINE"))
		snprintf(name->machine, sizeof(name->machine), "%s", getenv("KVM_MACHINE"));
	if (getenv("KVM_RELEASE"))
		snprintf(name->release, sizeof(name->release), "%s", getenv("KVM_RELEASE"));
	return rc;
}

__attribute__((visibility("default"))) int open(const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (!strcmp(path, "/dev/kmsg") && getenv("KVM_LOG"))
		return open_log(getenv("KVM_LOG"));
	if (strcmp(path, "/dev/kvm"))
		return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	if (fail(number("KVM_OPEN")))
		return -1;
	kvm = (int)syscall(SYS_openat, AT_FDCWD, "/dev/null", flags, 0);
	return kvm;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	unsigned long argument;
	char name[32];
	va_list args;

	va_start(args, request);
	argument = va_arg(args, unsigned long);
	va_end(args);
	if (request == KVM_CHECK_EXTENSION) { /* of KVM or a VM */
		snprintf(name, sizeof(name), "KVM_%lu", argument);
		return number(name);
	}
	if (fd != kvm)
		return (int)syscall(SYS_ioctl, fd, request, argument);
	if (request == KVM_GET_API_VERSION)
		return KVM_API_VERSION;
	if (request == KVM_CREATE_VM)
		return fail(number("KVM_VM")) ? -1 : dup(fd);
	return fail(ENOTTY);
}
