/* SPDX-License-Identifier: MIT */
/*
 * channel.h: the pager's ends of the channels over which threads of a VM ask
 * for pages: wire.h.  A request is a fault like any other (demand.c), and is
 * answered when its page is settled.
 *
 * A channel has one request at a time: another one stays unread until the
 * first is answered, so that a VMM cannot have more faults wait than it has
 * channels.  An answer that finds no room is dropped, since who sends that much
 * unread has not waited for it.  A request that a dead worker had read is lost
 * with it: the next worker says "ask again" on every channel.
 * Internal; called on the session's thread, except where it says otherwise.
 */
#ifndef INFILL_CHANNEL_H
#define INFILL_CHANNEL_H

#include <stdint.h>

struct channels;
struct infill_session;

/*
 * The channels FD, COUNT of them, and the VMM's main socket: the fds stay the
 * caller's, and open until channels_free().  -EBADF: one is no SOCK_SEQPACKET
 * socket.  Any thread.
 */
int channels_new(struct channels **channels, int sock, const int *fd, unsigned count);
void channels_free(struct channels *channels);

/* Readable when channels_events() has something to do. */
int channels_fd(const struct channels *channels);

/* Read requests, one of each channel at most, and serve them; notice that the VMM is gone. */
void channels_events(struct infill_session *s);

/* COUNT pages from PAGE on are settled: answer who asked for one of them. */
void channels_settled(struct infill_session *s, uint64_t page, uint64_t count);

/* The session has failed with CODE: answer everybody.  Any thread of a pager. */
void channels_failed(struct channels *channels, int code);

/* The session begins, perhaps after that of a worker that died: say so, and "ask again". */
void channels_begin(struct channels *channels);

/* Nothing is missing. */
void channels_resident(struct channels *channels);

#endif
