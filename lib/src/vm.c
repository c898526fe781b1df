/* SPDX-License-Identifier: MIT */
/*
 * vm.c: what is kept of a VM.  What vm_tell() writes is ABI: clients parse it.
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vm.h"
#include "wire.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void vm_close_given(struct vm *vm)
{
	for (unsigned i = 0; i < vm->count; i++)
		fd_close(&vm->fd[i]);
	free(vm->fd);
	vm->fd = NULL;
	vm->count = 0;
}

void vm_close(struct vm *vm)
{
	fd_close(&vm->uffd);
	fd_close(&vm->state);
	fd_close(&vm->sock);
	fd_close(&vm->pidfd);
	vm_close_given(vm);
	free(vm->hello);
	free(vm->failed);
	*vm = VM_NONE;
}

void vm_identify(struct vm *vm)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int pidfd;

	if (!getsockopt(vm->sock, SOL_SOCKET, SO_PEERCRED, &peer, &size))
		vm->pid = peer.pid;
	size = sizeof(pidfd);
	if (!getsockopt(vm->sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size))
		vm->pidfd = pidfd;
	else if (vm->pid > 0)
		vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
}

bool vm_is_userfaultfd(int fd)
{
	char link[64], target[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	if (n < 0)
		return fd >= 0;
	target[n] = 0;
	return strstr(target, "[userfaultfd]");
}

/*
 * An install needs the process's memory before it looks at the address: page 1,
 * which nobody can map, is ENOENT while there is memory, and ESRCH later.
 */
bool vm_is_gone(const struct vm *vm)
{
	struct uffdio_zeropage probe = { .range = { .start = 4096, .len = 4096 } };

	return ioctl(vm->uffd, UFFDIO_ZEROPAGE, &probe) && errno == ESRCH;
}

static void tell_json(int sock, const char *what)
{
	/* WHAT may quote hostile bytes that are not UTF-8. */
	json_t *reason = json_string(what);
	json_t *line = json_pack("{s:s, s:o}", "infill", "error", "what",
				 reason ? reason : json_string("the message cannot be understood"));
	char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;

	if (sock >= 0 && text) {
		struct iovec part[] = { { text, strlen(text) }, { (void *)"\n", 1 } };
		struct msghdr message = { .msg_iov = part, .msg_iovlen = 2 };

		(void)!sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	free(text);
	json_decref(line);
}

void vm_tell(int sock, bool binary, const char *what)
{
	if (binary)
		wire_tell(sock, WIRE_ERROR, EPROTO, what);
	else
		tell_json(sock, what);
}

int vm_kill(const struct vm *vm)
{
	if (vm->pidfd < 0)
		return -ESRCH;
	return syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0) ? -errno : 0;
}

void vm_wait_gone(const struct vm *vm, int timeout_ms)
{
	struct pollfd end = { .fd = vm->pidfd, .events = POLLIN };

	if (vm->pidfd >= 0)
		poll(&end, 1, timeout_ms);
}
