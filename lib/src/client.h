/* SPDX-License-Identifier: MIT */
/*
 * client.h: connections from accept(2) until their message is whole.
 *
 * Whether it is whole is found out here by handshake_scan(), which counts
 * brackets and quotes, and not by asking the worker after each piece: a worker
 * that is just dead then costs a slow client nothing, and no message has to be
 * sent twice.  Nothing is parsed: hostile bytes meet a few lines of code in
 * the process that must not fall.  (A binary message says how long it is.)
 *
 * A client that is refused may have sent its userfaultfd all the same, unseen.
 * So the receiving side is shut down first (the client's next send fails) and
 * read to its end, and a userfaultfd that comes to light is kept like a VM's.
 * Internal; may change freely.
 */
#ifndef INFILL_CLIENT_H
#define INFILL_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "handshake.h"
#include "loop.h"
#include "serve.h"
#include "vm.h"

enum client_state {
	CLIENT_READING, /* its message is not whole */
	CLIENT_ASKING,  /* a control request that has no answer yet */
};

struct client {
	int sock; /* -1: the slot is free */
	uint64_t id;
	uint64_t since, deadline;
	enum client_state state;
	bool given;     /* ASKING: the worker has it */
	bool answering; /* ASKING: bytes of the answer may have been written */
	bool shared;    /* it has the cache */
	int fd;         /* the first that came, a userfaultfd preferred; -1 */
	unsigned fds;   /* how many came */
	bool binary;    /* its message is wire.h's: all fds are kept */
	bool too_many;  /* more than there may be */
	int *all;       /* WIRE_FDS_MAX places */
	unsigned count;
	struct handshake_scan scan;
	char *bytes;
	size_t length, size;
};

struct clients {
	const struct server *server;
	struct client *client; /* MAX slots */
	unsigned max;
	uint64_t next_id;
	uint64_t accept_after; /* ns: a moment's rest when there are no fds */
	/* VM is the callee's now; its `failed` is set if it was refused. */
	void (*on_vm)(void *arg, struct vm *vm);
	/* A control request; the callee calls client_answered() some time. */
	void (*on_control)(void *arg, struct client *client);
	void *arg;
};

int clients_init(struct clients *clients, const struct server *server);
void clients_free(struct clients *clients);

/* Take part in a turn; ACCEPTING: new ones as well. */
void clients_poll(struct clients *clients, struct loop *loop, bool accepting);

/* Refuse all that have no whole message. */
void clients_stop(struct clients *clients);

/* The client that asks with this id; NULL: it is gone. */
struct client *clients_asking(struct clients *clients, uint64_t id);

/* An answer was given.  SHARED: it was the cache, and a handshake may follow. */
void client_answered(struct clients *clients, struct client *client, bool shared);

/* Close and forget it. */
void client_close(struct client *client);

#endif
