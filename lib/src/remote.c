/* SPDX-License-Identifier: MIT */
/* remote.c: the VMM's side of a pager in another process.  Internal. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connect.h"
#include "err.h"
#include "loop.h"
#include "remote.h"

#define STOP_MS 100 /* how often a flag is looked at */
#define REMOTE_MS 30000 /* a pager that lives serves a VM by then, its worker's restarts included */

struct channel {
	int fd;
	pthread_mutex_t lock; /* one request at a time */
	uint64_t sequence;    /* of the last request */
};

struct remote {
	int sock;
	unsigned count;
	struct channel channel[WIRE_CHANNELS_MAX];
};

/* ---- asking --------------------------------------------------------------------- */

static int ended(void)
{
	return err_set(-ECONNRESET, "pager: the connection has ended: no more is filled");
}

static int send_request(const struct channel *c, const struct wire_request *q)
{
	ssize_t n;

	do
		n = send(c->fd, q, sizeof(*q), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? ended() : 0;
}

/* Wait until the channel has something.  0, -EINTR (not without STOP) or -ECONNRESET. */
static int wait_for(const struct remote *r, const struct channel *c, const volatile uint8_t *stop)
{
	struct pollfd wait[] = { { .fd = c->fd, .events = POLLIN }, { .fd = r->sock } };
	int ready;

	do
		ready = poll(wait, 2, stop ? STOP_MS : -1);
	while (stop ? !ready && !*stop : ready < 0 && errno == EINTR);
	if (!ready || (ready < 0 && errno == EINTR))
		return err_set(-EINTR, "pager: a signal came");
	if (ready < 0)
		return err_set(-errno, "pager: poll: %m");
	/* An answer that has come counts, whatever became of the pager since. */
	if (wait[0].revents & POLLIN)
		return 0;
	return ended();
}

/* 1: ANSWER is one; 0: there is none now; -ECONNRESET. */
static int receive(const struct channel *c, struct wire_answer *answer)
{
	ssize_t n = recv(c->fd, answer, sizeof(*answer), MSG_DONTWAIT);

	if (n == sizeof(*answer))
		return 1;
	return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : ended();
}

/*
 * All that has come: answers to requests that were given up are passed over.
 * 1: ANSWER is the one that is waited for; 0: wait on.  *AGAIN: a new worker
 * has said that it does not know of the request.
 */
static int look(const struct channel *c, struct wire_answer *answer, bool *again)
{
	int rc;

	while ((rc = receive(c, answer)) == 1) {
		if (answer->sequence == c->sequence)
			return 1;
		*again |= !answer->sequence;
	}
	return rc;
}

/* Q is sent with a new sequence. */
static int exchange(const struct remote *r, struct channel *c, struct wire_request *q,
		    const volatile uint8_t *stop, struct wire_answer *answer)
{
	int rc;

	q->sequence = ++c->sequence;
	rc = send_request(c, q);
	while (!rc) {
		bool again = false;

		rc = wait_for(r, c, stop);
		if (!rc)
			rc = look(c, answer, &again);
		if (rc == 1)
			return 0;
		if (!rc && again)
			rc = send_request(c, q);
	}
	return rc;
}

/* Over channel NUMBER, whose users take turns. */
static int ask(struct remote *r, unsigned number, struct wire_request *q,
	       const volatile uint8_t *stop, struct wire_answer *answer)
{
	struct channel *c = &r->channel[number];
	int rc;

	pthread_mutex_lock(&c->lock);
	rc = exchange(r, c, q, stop, answer);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int remote_ask(struct remote *r, unsigned thread, uint64_t gpa, const volatile uint8_t *stop,
	       uint64_t *first, uint64_t *bytes)
{
	struct wire_request q = { .gpa = gpa };
	struct wire_answer answer;
	int rc = ask(r, thread ? 1 + (thread - 1) % (r->count - 1) : 0, &q, stop, &answer);

	if (rc)
		return rc;
	*first = answer.gpa;
	*bytes = answer.bytes;
	if (answer.status == EHWPOISON)
		return err_set(-EHWPOISON, "pager: the page at 0x%llx cannot be read",
			       (unsigned long long)gpa);
	if (answer.status)
		return err_set(-(int)answer.status, "pager: the page at 0x%llx is not filled: %s",
			       (unsigned long long)gpa, strerror((int)answer.status));
	return 0;
}

int remote_discard(struct remote *r, uint64_t gpa, uint64_t bytes)
{
	struct wire_request q = { .gpa = gpa, .bytes = bytes };
	struct wire_answer answer;
	/* A signal must not leave it open whether the pager knows. */
	int rc = ask(r, 0, &q, NULL, &answer);

	if (rc || !answer.status)
		return rc;
	return err_set(-(int)answer.status, "pager: cannot give up 0x%llx bytes at 0x%llx: %s",
		       (unsigned long long)bytes, (unsigned long long)gpa,
		       strerror((int)answer.status));
}

/* ---- notices ------------------------------------------------------------------------ */

static int receive_all(int sock, void *to, size_t length, uint64_t deadline)
{
	size_t used = 0;

	while (used < length) {
		struct pollfd wait = { .fd = sock, .events = POLLIN };
		uint64_t now = loop_now();
		int ms = deadline == LOOP_NEVER ? -1 :
			 deadline > now		? (int)((deadline - now) / LOOP_MS) + 1 : 0;
		int ready = poll(&wait, 1, ms);
		ssize_t n;

		if (!ready)
			return err_set(-ETIMEDOUT, "pager: did not answer");
		n = recv(sock, (char *)to + used, length - used, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return ended();
		used += (size_t)n;
	}
	return 0;
}

int remote_notice(struct remote *r, struct wire_notice *notice, char *text, int timeout_ms)
{
	uint64_t deadline = timeout_ms < 0 ? LOOP_NEVER : loop_now() + (uint64_t)timeout_ms * LOOP_MS;
	int rc = receive_all(r->sock, notice, sizeof(*notice), deadline);

	if (rc)
		return rc;
	if (notice->bytes < sizeof(*notice) || notice->bytes > WIRE_NOTICE_MAX)
		return err_set(-ECONNRESET, "pager: says what is no notice");
	rc = receive_all(r->sock, text, notice->bytes - sizeof(*notice), deadline);
	text[notice->bytes - sizeof(*notice)] = 0;
	return rc;
}

/* ---- connecting ----------------------------------------------------------------------- */

/* Send the hello with its fds, all of them with the first byte. */
static int send_hello(int sock, const void *hello, size_t length, const int *fd, unsigned count)
{
	union {
		char space[CMSG_SPACE(WIRE_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec part = { .iov_base = (void *)(uintptr_t)hello, .iov_len = length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	ssize_t n;

	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(&control.align), fd, count * sizeof(int));
	while (length) {
		n = sendmsg(sock, &message, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) /* why may be there to be read */
			return errno == EPIPE || errno == ECONNRESET ? 0 :
			       err_set(-errno, "pager: the hello cannot be sent: %m");
		length -= (size_t)n;
		part = (struct iovec){ (char *)part.iov_base + n, length };
		message.msg_control = NULL;
		message.msg_controllen = 0;
	}
	return 0;
}

/* Our ends are R's, the other ones go to FD. */
static int make_channels(struct remote *r, unsigned count, int *fd)
{
	for (; r->count < count; r->count++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			return err_set(-errno, "pager: cannot make a channel: %m");
		r->channel[r->count].fd = pair[0];
		pthread_mutex_init(&r->channel[r->count].lock, NULL);
		fd[r->count] = pair[1];
	}
	return 0;
}

/* Tell the pager all, and close what only it needs. */
static int greet(struct remote *r, const struct infill_memory *memory, int bitmap_fd, int uffd,
		 bool protected, unsigned threads)
{
	uint32_t flags = (uffd >= 0 ? WIRE_UFFD : 0) | (protected ? WIRE_PROTECTED : 0);
	unsigned channels = threads < WIRE_CHANNELS_MAX ? threads + 1 : WIRE_CHANNELS_MAX, files;
	char hello[sizeof(struct wire_hello) +
		   INFILL_MEMORY_REGIONS_MAX * sizeof(struct wire_region)]
		__attribute__((aligned(8)));
	int fd[WIRE_FDS_MAX] = { bitmap_fd }, *channel, rc;
	int length = wire_write(hello, sizeof(hello), memory, channels, flags, fd + 1, &files);

	if (length < 0)
		return length;
	channel = fd + 1 + files;
	rc = make_channels(r, channels, channel);
	channel[r->count] = uffd;
	if (!rc)
		rc = send_hello(r->sock, hello, (size_t)length, fd,
				1 + files + channels + (uffd >= 0));
	for (unsigned i = 0; i < r->count; i++)
		close(channel[i]);
	return rc;
}

static int wait_served(struct remote *r)
{
	struct wire_notice notice;
	char text[WIRE_NOTICE_MAX];
	int rc = remote_notice(r, &notice, text, REMOTE_MS);

	if (rc || notice.type == WIRE_SERVED)
		return rc;
	if (notice.type != WIRE_ERROR)
		return err_set(-EPROTO, "pager: notice %u came before it serves", notice.type);
	return err_set(notice.error ? -(int)notice.error : -EPROTO, "pager: %s", text);
}

int remote_connect(struct remote **remote, const char *path, const struct infill_memory *memory,
		   int bitmap_fd, int uffd, bool protected, unsigned threads)
{
	struct remote *r = calloc(1, sizeof(*r));
	int off = 0, rc;

	if (!r)
		return err_set(-ENOMEM, "pager: %m");
	r->sock = rc = pager_connect(path, loop_now() + REMOTE_MS * LOOP_MS);
	if (rc >= 0) {
		rc = ioctl(r->sock, FIONBIO, &off) ? err_set(-errno, "pager: %m") : 0;
		if (!rc)
			rc = greet(r, memory, bitmap_fd, uffd, protected, threads);
		if (!rc)
			rc = wait_served(r);
	}
	if (rc)
		remote_free(r);
	else
		*remote = r;
	return rc;
}

void remote_shutdown(struct remote *r)
{
	shutdown(r->sock, SHUT_RDWR);
}

void remote_free(struct remote *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i < r->count; i++) {
		close(r->channel[i].fd);
		pthread_mutex_destroy(&r->channel[i].lock);
	}
	if (r->sock >= 0)
		close(r->sock);
	free(r);
}
