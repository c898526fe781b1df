/* SPDX-License-Identifier: MIT */
/*
 * packet.h: what supervisor and worker say to each other, over a pair of
 * SOCK_SEQPACKET sockets.  Both are of the same build.  Internal; may change
 * freely.
 */
#ifndef INFILL_PACKET_H
#define INFILL_PACKET_H

#include <stddef.h>
#include <stdint.h>

#include "handshake.h"

enum packet_type {
	/* to the worker */
	PACKET_TAKE = 1, /* a VM: files, flags, handshake (or why it failed) */
	PACKET_CONTROL,  /* a request: the client's socket, text */
	PACKET_STOP,     /* end when no VM needs a page any more */
	PACKET_STOP_NOW, /* end */
	/* to the supervisor */
	PACKET_READY,     /* the worker is set up */
	PACKET_BROKEN,    /* it cannot be: text */
	PACKET_ACCEPTED,  /* a VM is being served */
	PACKET_FAILED,    /* a VM is only kept from now on: text */
	PACKET_ENDED,     /* a VM is gone or needs nothing more */
	PACKET_ANSWERING, /* the first byte of an answer is about to be written */
	PACKET_ANSWERED,  /* a request is done with */
};

#define PACKET_SOCK (1u << 0)     /* TAKE: there is a socket */
#define PACKET_PIDFD (1u << 1)    /* TAKE: there is a pidfd */
#define PACKET_SHARED (1u << 2)   /* TAKE: vm->shared; ANSWERED: the client got the cache */
#define PACKET_SERVED (1u << 3)   /* TAKE: vm->accepted */
#define PACKET_HOPELESS (1u << 4) /* TAKE: vm->failed: text is that */
#define PACKET_UFFD (1u << 5)     /* TAKE: there is a userfaultfd */
#define PACKET_STATE (1u << 6)    /* TAKE: there is a state file */
#define PACKET_BINARY (1u << 7)   /* TAKE: vm->binary */

/* A packet's fds, in this order, each if its flag is set; then vm->fd. */
#define PACKET_OWN_FDS 4 /* userfaultfd, state, socket, pidfd */
#define PACKET_FDS (PACKET_OWN_FDS - 1 + WIRE_FDS_MAX)
_Static_assert(PACKET_FDS <= 253, "SCM_MAX_FD");

struct packet {
	uint32_t type;
	uint32_t flags;
	uint64_t id;
	int64_t pid;
	/* not sent: */
	size_t length; /* of data */
	unsigned fds;
	int fd[PACKET_FDS];
	char data[HANDSHAKE_MAX + 1]; /* with a NUL when received */
};

/* Send a packet with DATA; FLAGS as send(2).  0 or -errno. */
int packet_send(int sock, const struct packet *packet, const void *data, size_t length, int flags);

/*
 * Receive a packet without waiting.  Its fds are the caller's.  1; 0: the
 * other side is gone; -EAGAIN: none; -EBADMSG: not one.
 */
int packet_receive(int sock, struct packet *packet);

#endif
