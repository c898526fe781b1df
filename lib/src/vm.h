/* SPDX-License-Identifier: MIT */
/*
 * vm.h: what is kept of a VM, so that a new worker can go on serving it.
 * Internal; may change freely.
 */
#ifndef INFILL_VM_H
#define INFILL_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct vm {
	uint64_t id;
	int uffd;      /* -1: none (then nothing has to be kept when it is refused) */
	int state;     /* memfd of the page states */
	int sock;      /* -1: closed */
	int pidfd;     /* -1: the kernel gave none */
	pid_t pid;     /* of the process that connected; 0: not visible from here */
	int *fd;       /* what else came, in its order: wire.h; COUNT of them */
	unsigned count;
	bool binary;   /* it speaks wire.h: KVM Userfault */
	bool shared;   /* its memory is a mapping of the cache */
	bool accepted; /* it has been served, by this worker or an earlier one */
	char *hello;   /* the handshake, LENGTH bytes: JSON, or wire.h's */
	size_t length;
	char *failed;  /* why it is not served any more, only kept; NULL: it is */
};

#define VM_NONE ((struct vm){ .uffd = -1, .state = -1, .sock = -1, .pidfd = -1 })

/* Close and free everything. */
void vm_close(struct vm *vm);

/* Close vm->fd: who waits on a channel finds its end. */
void vm_close_given(struct vm *vm);

/* Fill in pid and pidfd from the peer of vm->sock. */
void vm_identify(struct vm *vm);

/* Is FD a userfaultfd?  True if that cannot be found out. */
bool vm_is_userfaultfd(int fd);

/* Is the memory behind the userfaultfd gone (the process ended, or did execve(2))? */
bool vm_is_gone(const struct vm *vm);

/* Tell a client that WHAT is wrong, if it takes it at once: a line of JSON, or wire.h's notice. */
void vm_tell(int sock, bool binary, const char *what);

/* SIGKILL the VMM.  0 or -errno. */
int vm_kill(const struct vm *vm);

/* Wait until the VMM is gone, for TIMEOUT_MS at most. */
void vm_wait_gone(const struct vm *vm, int timeout_ms);

/* Close FD if it is open, and forget it. */
void fd_close(int *fd);

#endif
