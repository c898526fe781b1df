/* SPDX-License-Identifier: MIT */
/*
 * packet.c: what supervisor and worker say to each other.  Internal; may
 * change freely.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "packet.h"

#define HEADER offsetof(struct packet, length)

union control {
	char space[CMSG_SPACE(PACKET_FDS * sizeof(int))];
	struct cmsghdr align;
};

int packet_send(int sock, const struct packet *packet, const void *data, size_t length, int flags)
{
	union control control = { 0 };
	struct iovec part[] = { { (void *)packet, HEADER }, { (void *)data, length } };
	struct msghdr message = { .msg_iov = part, .msg_iovlen = 2 };
	ssize_t n;

	if (packet->fds) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(packet->fds * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(packet->fds * sizeof(int));
		memcpy(CMSG_DATA(&control.align), packet->fd, packet->fds * sizeof(int));
	}
	do
		n = sendmsg(sock, &message, flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

static void take_fds(struct packet *packet, struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		packet->fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(packet->fd, CMSG_DATA(c), packet->fds * sizeof(int));
	}
}

int packet_receive(int sock, struct packet *packet)
{
	union control control;
	struct iovec part[] = { { packet, HEADER }, { packet->data, HANDSHAKE_MAX } };
	struct msghdr message = { .msg_iov = part, .msg_iovlen = 2, .msg_control = &control,
				  .msg_controllen = sizeof(control.space) };
	ssize_t n;

	packet->fds = 0;
	do
		n = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : 0; /* ECONNRESET: it died with packets unread */
	if (n == 0)
		return 0;
	take_fds(packet, &message);
	if ((size_t)n < HEADER || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		for (unsigned i = 0; i < packet->fds; i++)
			close(packet->fd[i]);
		return -EBADMSG;
	}
	packet->length = (size_t)n - HEADER;
	packet->data[packet->length] = 0;
	return 1;
}
