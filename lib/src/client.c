/* SPDX-License-Identifier: MIT */
/*
 * client.c: connections from accept(2) until their message is whole.
 * Internal; the texts of refusals are not ABI.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "err.h"
#include "memfd.h"

#define FDS_ROOM WIRE_FDS_MAX /* that one recvmsg(2) can take; the kernel closes more */
#define BYTES_FIRST 4096
#define REST_MS 100    /* until accept(2) is tried again */
#define ROOM_MS 100    /* that a client has before it may have to make room */

int clients_init(struct clients *clients, const struct server *server)
{
	*clients = (struct clients){ .server = server, .max = server->options.max_clients };
	clients->next_id = 1;
	clients->client = calloc(clients->max, sizeof(*clients->client));
	if (!clients->client)
		return err_set(-ENOMEM, "serve: %m");
	for (unsigned i = 0; i < clients->max; i++)
		clients->client[i].sock = clients->client[i].fd = -1;
	return 0;
}

void clients_free(struct clients *clients)
{
	for (unsigned i = 0; clients->client && i < clients->max; i++)
		client_close(&clients->client[i]);
	free(clients->client);
	clients->client = NULL;
}

void client_close(struct client *client)
{
	fd_close(&client->sock);
	fd_close(&client->fd);
	for (unsigned i = 0; i < client->count; i++)
		fd_close(&client->all[i]);
	free(client->all);
	free(client->bytes);
	*client = (struct client){ .sock = -1, .fd = -1 };
}

/* ---- receiving ---------------------------------------------------------------- */

/*
 * Keep an fd of a binary message.  The lowest free number is given, so a large
 * one means that as many are open; the worker opens more for a VM.  False: it
 * is one too many.
 */
static bool keep_fd(const struct server *server, struct client *c, int fd)
{
	if (!c->all)
		c->all = malloc(WIRE_FDS_MAX * sizeof(int));
	if (c->all && c->count < WIRE_FDS_MAX && fd < server->files_max) {
		c->all[c->count++] = fd;
		return true;
	}
	c->too_many = true;
	return false;
}

/* Keep the first fd, but a userfaultfd rather than anything else. */
static void take_fd(const struct server *server, struct client *c, int fd)
{
	c->fds++;
	if (c->binary && keep_fd(server, c, fd))
		return;
	if (c->fd >= 0 && (vm_is_userfaultfd(c->fd) || !vm_is_userfaultfd(fd))) {
		close(fd);
		return;
	}
	fd_close(&c->fd);
	c->fd = fd;
}

static void take_fds(const struct server *server, struct client *c, struct msghdr *message)
{
	for (struct cmsghdr *m = CMSG_FIRSTHDR(message); m; m = CMSG_NXTHDR(message, m)) {
		size_t count = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
			take_fd(server, c, fd);
		}
	}
	if (message->msg_flags & MSG_CTRUNC) {
		c->fds++; /* the kernel closed what had no room: more than one at any rate */
		c->too_many = true;
	}
}

/* One recvmsg(2) that does not wait.  Bytes read, 0 at the end, -errno. */
static ssize_t receive(const struct server *server, struct client *c, void *to, size_t size)
{
	union {
		char space[CMSG_SPACE(FDS_ROOM * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = { .iov_base = to, .iov_len = size };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control.space) };
	ssize_t n;

	do
		n = recvmsg(c->sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!c->length && n > 0)
		c->binary = *(const uint8_t *)to == WIRE_FIRST;
	take_fds(server, c, &message);
	return n;
}

static int make_room(struct client *c)
{
	size_t size = c->size ? 2 * c->size : BYTES_FIRST;
	char *bytes;

	if (c->length < c->size)
		return 0;
	bytes = realloc(c->bytes, size);
	if (!bytes)
		return err_set(-ENOMEM, "handshake: %m");
	c->bytes = bytes;
	c->size = size;
	return 0;
}

/* ---- handing on ------------------------------------------------------------------ */

/* The userfaultfd among all fds, which it then is not any more; -1: there is none. */
static int take_userfaultfd(struct client *c)
{
	if (vm_is_userfaultfd(c->fd)) { /* one too many, and kept all the same */
		int fd = c->fd;

		c->fd = -1;
		return fd;
	}
	for (unsigned i = c->count; i--;) {
		int fd = c->all[i];

		if (!vm_is_userfaultfd(fd))
			continue;
		memmove(&c->all[i], &c->all[i + 1], (--c->count - i) * sizeof(int));
		return fd;
	}
	return -1;
}

/* Turn the client into a VM with the reason WHY it is only kept (NULL: it is served). */
static void become_vm(struct clients *clients, struct client *c, const char *why)
{
	struct vm vm = VM_NONE;

	vm.sock = c->sock;
	vm.uffd = c->binary ? take_userfaultfd(c) : c->fd;
	vm.binary = c->binary;
	vm.fd = c->all;
	vm.count = c->count;
	vm.shared = c->shared && !c->binary;
	vm.failed = why ? strdup(why) : NULL;
	vm_identify(&vm);
	vm.hello = c->bytes;
	vm.length = c->length;
	c->sock = -1;
	c->fd = c->binary ? c->fd : -1;
	c->bytes = NULL;
	c->all = NULL;
	c->count = 0;
	client_close(c);
	if (why) {
		fd_close(&vm.sock);
		vm_close_given(&vm);
	}
	clients->on_vm(clients->arg, &vm);
}

static bool has_userfaultfd(const struct client *c)
{
	bool found = vm_is_userfaultfd(c->fd);

	for (unsigned i = 0; i < c->count; i++)
		found |= vm_is_userfaultfd(c->all[i]);
	return found;
}

static void refuse(struct clients *clients, struct client *c, const char *why)
{
	char rest[4096], text[512];

	snprintf(text, sizeof(text), "%s", why); /* WHY may be err_text(), which changes */
	shutdown(c->sock, SHUT_RD);
	while (receive(clients->server, c, rest, sizeof(rest)) > 0)
		;
	server_log(clients->server, LOG_WARNING, "a client was refused: %s", text);
	vm_tell(c->sock, c->binary, text);
	if (has_userfaultfd(c))
		become_vm(clients, c, text);
	else
		client_close(c);
}

static void hand_on_vm(struct clients *clients, struct client *c)
{
	if (c->fds == 0)
		refuse(clients, c, "handshake: has no file descriptor: send the userfaultfd with it "
		       "(SCM_RIGHTS)");
	else if (c->fds > 1)
		refuse(clients, c, "handshake: has more than one file descriptor: send only the "
		       "userfaultfd with it");
	else
		become_vm(clients, c, NULL);
}

static void hand_on(struct clients *clients, struct client *c)
{
	if (c->binary && c->too_many) {
		refuse(clients, c, "hello: more file descriptors than a hello may have, or than this "
		       "pager may open: raise its RLIMIT_NOFILE");
	} else if (c->binary) {
		become_vm(clients, c, NULL);
	} else if (c->scan.first == '[') {
		hand_on_vm(clients, c);
	} else if (c->fds) {
		refuse(clients, c, "handshake: is an object with a file descriptor: must be an array "
		       "of regions");
	} else {
		c->state = CLIENT_ASKING;
		c->given = c->answering = false;
		c->since = loop_now();
		c->deadline = c->since + SERVER_ANSWER_MS * LOOP_MS;
		clients->on_control(clients->arg, c);
	}
}

static void read_client(struct clients *clients, struct client *c)
{
	ssize_t n = make_room(c);

	if (!n)
		n = receive(clients->server, c, c->bytes + c->length, c->size - c->length);
	if (n == -EAGAIN)
		return;
	if (n == 0 && !c->length && !c->fds) {
		client_close(c); /* somebody looked whether a pager listens */
		return;
	}
	if (n <= 0) {
		refuse(clients, c, n ? "handshake: cannot be received" :
		       "handshake: the connection was closed before the message was whole");
		return;
	}
	c->length += (size_t)n;
	switch (handshake_scan(&c->scan, c->bytes + c->length - n, (size_t)n)) {
	case 0:
		hand_on(clients, c);
		break;
	case -EAGAIN:
		break;
	default:
		refuse(clients, c, err_text());
	}
}

/* ---- turns ------------------------------------------------------------------------ */

/*
 * When all slots are taken, who has had its time makes room: who sent nothing
 * before who sent something, then who came first.  A client that has just come
 * is never refused, because its VM may be in its message already.
 */
static struct client *who_makes_room(const struct clients *clients)
{
	struct client *best = NULL;

	for (unsigned i = 0; i < clients->max; i++) {
		struct client *c = &clients->client[i];

		if (c->state == CLIENT_ASKING && !c->answering)
			continue; /* waits for us, not we for it */
		if (!best || !c->length > !best->length ||
		    (!c->length == !best->length && c->since < best->since))
			best = c;
	}
	return best;
}

static struct client *free_slot(const struct clients *clients)
{
	for (unsigned i = 0; i < clients->max; i++)
		if (clients->client[i].sock < 0)
			return &clients->client[i];
	return NULL;
}

/* When there will be room for one more: now, or later. */
static uint64_t room_at(const struct clients *clients)
{
	const struct client *c;

	if (free_slot(clients))
		return 0;
	c = who_makes_room(clients);
	return c ? c->since + ROOM_MS * LOOP_MS : LOOP_NEVER;
}

static struct client *make_slot(struct clients *clients)
{
	struct client *c = free_slot(clients);
	char text[128];

	if (c || loop_now() < room_at(clients))
		return c;
	c = who_makes_room(clients);
	snprintf(text, sizeof(text), "there are more than %u clients (max_clients), and another one "
		 "came: retry", clients->max);
	if (c->state == CLIENT_ASKING)
		client_close(c);
	else
		refuse(clients, c, text);
	return free_slot(clients);
}

static void accept_one(struct clients *clients, struct client *c, int sock)
{
	c->sock = sock;
	c->id = clients->next_id++;
	c->since = loop_now();
	c->deadline = c->since + clients->server->options.handshake_ms * LOOP_MS;
	read_client(clients, c); /* most have sent it already */
}

static void on_listener(void *arg, int fd, short revents)
{
	struct clients *clients = arg;

	(void)revents;
	/* A few at a time: others want their turn. */
	for (int i = 0; i < 8; i++) {
		struct client *c = make_slot(clients);
		int sock = c ? accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;

		if (!c)
			return;
		if (sock >= 0) {
			accept_one(clients, c, sock);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			server_log(clients->server, LOG_ERR, "accept: %m: clients wait");
			clients->accept_after = loop_now() + REST_MS * LOOP_MS;
			return;
		} else if (errno != EINTR && errno != ECONNABORTED) {
			return;
		}
	}
}

static void on_client(void *arg, int fd, short revents)
{
	struct clients *clients = arg;

	(void)revents;
	for (unsigned i = 0; i < clients->max; i++)
		if (clients->client[i].sock == fd && clients->client[i].state == CLIENT_READING)
			read_client(clients, &clients->client[i]);
}

static void expire(struct clients *clients, struct client *c, uint64_t now)
{
	char text[128];

	if (c->sock < 0 || now < c->deadline)
		return;
	if (c->state == CLIENT_ASKING) {
		client_close(c);
		return;
	}
	snprintf(text, sizeof(text), "handshake: was not whole within %u ms",
		 clients->server->options.handshake_ms);
	refuse(clients, c, text);
}

void clients_poll(struct clients *clients, struct loop *loop, bool accepting)
{
	uint64_t now = loop_now(), when;

	for (unsigned i = 0; i < clients->max; i++) {
		struct client *c = &clients->client[i];

		expire(clients, c, now);
		if (c->sock < 0)
			continue;
		loop_until(loop, c->deadline);
		if (c->state == CLIENT_READING)
			loop_add(loop, c->sock, POLLIN, on_client, clients);
	}
	if (!accepting || clients->server->listener < 0)
		return;
	when = room_at(clients);
	if (when < clients->accept_after)
		when = clients->accept_after;
	if (now < when)
		loop_until(loop, when);
	else
		loop_add(loop, clients->server->listener, POLLIN, on_listener, clients);
}

void clients_stop(struct clients *clients)
{
	for (unsigned i = 0; i < clients->max; i++)
		if (clients->client[i].sock >= 0 && clients->client[i].state == CLIENT_READING)
			refuse(clients, &clients->client[i], "the pager is stopping");
}

struct client *clients_asking(struct clients *clients, uint64_t id)
{
	for (unsigned i = 0; i < clients->max; i++) {
		struct client *c = &clients->client[i];

		if (c->sock >= 0 && c->id == id && c->state == CLIENT_ASKING)
			return c;
	}
	return NULL;
}

void client_answered(struct clients *clients, struct client *client, bool shared)
{
	if (!shared) {
		client_close(client);
		return;
	}
	client->shared = true;
	client->state = CLIENT_READING;
	client->length = 0;
	client->scan = (struct handshake_scan){ 0 };
	client->since = loop_now();
	client->deadline = client->since + clients->server->options.handshake_ms * LOOP_MS;
}
