/* SPDX-License-Identifier: MIT */
/* channel.c: requests for pages, and their answers.  Internal. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "demand.h"
#include "err.h"
#include "session.h"
#include "userfault.h"
#include "wire.h"

#define BATCH 32
#define MAIN_SOCKET UINT32_MAX

struct channel {
	int fd;            /* -1: the VMM has closed its end */
	bool deaf;         /* not in the epoll set: a second request waits */
	uint64_t sequence; /* of the request that waits for an answer; 0: none */
	uint64_t page;
};

struct channels {
	int epoll, sock;
	unsigned count, waiting; /* of them with a request */
	struct channel channel[];
};

/* ---- their lives ------------------------------------------------------------------ */

static int socket_option(int fd, int name)
{
	socklen_t size = sizeof(int);
	int value;

	return getsockopt(fd, SOL_SOCKET, name, &value, &size) ? -errno : value;
}

static int listen_to(struct channels *c, int op, int fd, uint32_t events, uint32_t number)
{
	struct epoll_event e = { .events = events, .data.u32 = number };

	return epoll_ctl(c->epoll, op, fd, &e) ? err_set(-errno, "channels: epoll: %m") : 0;
}

static int add(struct channels *c, unsigned number, int fd)
{
	if (socket_option(fd, SO_DOMAIN) != AF_UNIX || socket_option(fd, SO_TYPE) != SOCK_SEQPACKET)
		return err_set(-EBADF, "hello: channel %u: is no SOCK_SEQPACKET Unix socket", number);
	c->channel[number].fd = fd;
	return listen_to(c, EPOLL_CTL_ADD, fd, EPOLLIN, number);
}

int channels_new(struct channels **channels, int sock, const int *fd, unsigned count)
{
	struct channels *c = calloc(1, sizeof(*c) + count * sizeof(c->channel[0]));
	int rc;

	if (!c)
		return err_set(-ENOMEM, "channels: %m");
	c->sock = sock;
	c->count = count;
	c->epoll = epoll_create1(EPOLL_CLOEXEC);
	rc = c->epoll < 0 ? err_set(-errno, "channels: %m") : 0;
	for (unsigned i = 0; i < count && !rc; i++)
		rc = add(c, i, fd[i]);
	if (!rc && sock >= 0)
		rc = listen_to(c, EPOLL_CTL_ADD, sock, EPOLLRDHUP, MAIN_SOCKET);
	if (rc)
		channels_free(c);
	else
		*channels = c;
	return rc;
}

void channels_free(struct channels *c)
{
	if (c && c->epoll >= 0)
		close(c->epoll);
	free(c);
}

int channels_fd(const struct channels *c)
{
	return c->epoll;
}

/* ---- answers ------------------------------------------------------------------------ */

static void send_answer(const struct channel *c, const struct wire_answer *answer)
{
	if (c->fd >= 0)
		(void)!send(c->fd, answer, sizeof(*answer), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The request is answered: another one may be read. */
static void done(struct channels *channels, struct channel *c)
{
	c->sequence = 0;
	channels->waiting--;
	if (c->deaf && c->fd >= 0)
		listen_to(channels, EPOLL_CTL_ADD, c->fd, EPOLLIN, (uint32_t)(c - channels->channel));
	c->deaf = false;
}

static void refuse(struct channels *channels, struct channel *c, int code)
{
	const struct wire_answer answer = { .sequence = c->sequence, .status = (uint32_t)-code };

	send_answer(c, &answer);
	done(channels, c);
}

/* Of pages from PAGE on, with what was filled for its request, how many vCPUs may have. */
static uint64_t there_from(struct infill_session *s, const struct pagemap_region *r, uint64_t page,
			   uint64_t count)
{
	while (page + count < s->served_to && !userfault_missing(s->userfault, r, page + count))
		count++;
	return count;
}

/* COUNT pages from PAGE on are in one state, the one that C asked for among them. */
static void answer(struct infill_session *s, struct channel *c, uint64_t page, uint64_t count)
{
	const struct pagemap_region *r = pagemap_region(&s->pm, page);
	const struct wire_answer there = {
		.sequence = c->sequence, .gpa = r->gpa + (page - r->first) * r->page_size,
		.bytes = there_from(s, r, page, count) * r->page_size,
	};
	const struct wire_answer again = { 0 };

	switch (pagemap_get(&s->pm, c->page)) {
	case PAGE_REMOVED: /* its bit may be set still: it was given up while it was missing */
		userfault_clear(s->userfault, r, c->page, 1);
		/* fall through */
	case PAGE_PRESENT:
		send_answer(c, &there);
		done(s->channels, c);
		break;
	case PAGE_POISONED:
		refuse(s->channels, c, -EHWPOISON);
		break;
	default: /* put back: not here, where one thread fills */
		send_answer(c, &again);
		done(s->channels, c);
		break;
	}
}

void channels_settled(struct infill_session *s, uint64_t page, uint64_t count)
{
	struct channels *channels = s->channels;

	for (unsigned i = 0; channels->waiting && i < channels->count; i++) {
		struct channel *c = &channels->channel[i];

		if (c->sequence && c->page - page < count)
			answer(s, c, page, count);
	}
}

void channels_failed(struct channels *channels, int code)
{
	for (unsigned i = 0; channels->waiting && i < channels->count; i++)
		if (channels->channel[i].sequence)
			refuse(channels, &channels->channel[i], code);
}

void channels_begin(struct channels *channels)
{
	const struct wire_answer again = { 0 };

	wire_tell(channels->sock, WIRE_SERVED, 0, "");
	for (unsigned i = 0; i < channels->count; i++)
		send_answer(&channels->channel[i], &again);
}

void channels_resident(struct channels *channels)
{
	wire_tell(channels->sock, WIRE_RESIDENT, 0, "");
}

/* ---- requests ------------------------------------------------------------------------- */

static int check_request(const struct wire_request *q, ssize_t length, unsigned number)
{
	if (length != sizeof(*q))
		return err_set(-EPROTO, "channel %u: a request of %zd bytes: it must have %zu", number,
			       length, sizeof(*q));
	if (!q->sequence || q->reserved)
		return err_set(-EPROTO, "channel %u: a request whose sequence is 0, or reserved is not",
			       number);
	return 0;
}

/* Wait for PAGE, or answer at once what is settled already. */
static void serve(struct infill_session *s, struct channel *c, const struct pagemap_region *r)
{
	switch (pagemap_get(&s->pm, c->page)) {
	case PAGE_PRESENT: /* its bit is clear, or a worker died before it could clear it */
		userfault_clear(s->userfault, r, c->page, 1);
		/* fall through */
	case PAGE_REMOVED:
	case PAGE_POISONED:
		answer(s, c, c->page, 1);
		break;
	default:
		demand_exit(s, r, c->page);
		break;
	}
}

/*
 * The VMM frees the memory when it has the answer: nothing is filled there any
 * more.  Bits stay as they are; the VMM clears them behind that.
 */
static void give_up(struct infill_session *s, struct channel *c, const struct pagemap_region *r,
		    const struct wire_request *q)
{
	const struct wire_answer gone = { .sequence = q->sequence, .gpa = q->gpa, .bytes = q->bytes };
	uint64_t from = q->gpa - r->gpa;

	if (s->protected) {
		refuse(s->channels, c, -EOPNOTSUPP);
		return;
	}
	if (from % r->page_size || q->bytes % r->page_size || q->bytes > r->length - from) {
		refuse(s->channels, c, -EINVAL);
		return;
	}
	demand_discard(s, c->page, q->bytes / r->page_size);
	send_answer(c, &gone);
	done(s->channels, c);
}

static void take(struct infill_session *s, struct channel *c, const struct wire_request *q)
{
	const struct pagemap_region *r;
	uint64_t page = 0;

	r = pagemap_find_gpa(&s->pm, q->gpa, &page);
	c->sequence = q->sequence;
	c->page = page;
	s->channels->waiting++;
	if (session_over(s))
		refuse(s->channels, c, s->error ? s->error : -ECANCELED);
	else if (!r)
		refuse(s->channels, c, -EFAULT);
	else if (q->bytes)
		give_up(s, c, r, q);
	else
		serve(s, c, r);
}

static void receive(struct infill_session *s, unsigned number)
{
	struct channel *c = &s->channels->channel[number];
	struct wire_request q;
	ssize_t n;

	if (c->sequence) { /* one at a time */
		c->deaf = true;
		epoll_ctl(s->channels->epoll, EPOLL_CTL_DEL, c->fd, NULL);
		return;
	}
	n = recv(c->fd, &q, sizeof(q), MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		epoll_ctl(s->channels->epoll, EPOLL_CTL_DEL, c->fd, NULL);
		c->fd = -1;
		return;
	}
	if (check_request(&q, n, number)) {
		if (!session_over(s))
			session_fail(s, -EPROTO);
		return;
	}
	take(s, c, &q);
}

void channels_events(struct infill_session *s)
{
	struct epoll_event events[BATCH];
	int n = epoll_wait(s->channels->epoll, events, BATCH, 0);

	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 != MAIN_SOCKET) {
			receive(s, events[i].data.u32);
			continue;
		}
		epoll_ctl(s->channels->epoll, EPOLL_CTL_DEL, s->channels->sock, NULL);
		session_end(s);
	}
	demand_serve(s);
}
