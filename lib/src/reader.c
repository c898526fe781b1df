/* SPDX-License-Identifier: MIT */
/*
 * reader.c: asynchronous reads by io_uring or, where that is not permitted,
 * by threads.  Internal; the contract is in reader.h.
 */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "err.h"
#include "image.h"
#include "reader.h"
#include "thread.h"

#define DEPTH 256 /* entries of the ring; more wait in `queued` */
#define THREADS 4 /* without io_uring */

struct queue_of_requests {
	struct reader_request *first, **last;
};

struct reader {
	bool ring_works;
	int eventfd;   /* both kinds of completion */
	unsigned busy; /* submitted and not reaped */
	struct io_uring ring;
	unsigned in_ring;
	struct queue_of_requests queued; /* for the ring */

	pthread_t thread[THREADS];
	unsigned threads;
	pthread_mutex_t lock; /* the rest */
	pthread_cond_t work;
	struct queue_of_requests given; /* to the threads */
	struct reader_request *done;
	bool stop;
};

static void enqueue(struct queue_of_requests *queue, struct reader_request *q)
{
	q->next = NULL;
	*queue->last = q;
	queue->last = &q->next;
}

static struct reader_request *dequeue(struct queue_of_requests *queue)
{
	struct reader_request *q = queue->first;

	if (q) {
		queue->first = q->next;
		if (!queue->first)
			queue->last = &queue->first;
	}
	return q;
}

static void *work_thread(void *arg)
{
	struct reader *r = arg;
	const uint64_t one = 1;

	pthread_mutex_lock(&r->lock);
	while (!r->stop) {
		struct reader_request *q = dequeue(&r->given);

		if (!q) {
			pthread_cond_wait(&r->work, &r->lock);
			continue;
		}
		pthread_mutex_unlock(&r->lock);
		q->result = image_read(q->image, q->offset, q->buffer, q->length);
		pthread_mutex_lock(&r->lock);
		q->next = r->done;
		r->done = q;
		/* Only fails at 2^64 - 1 requests. */
		(void)!write(r->eventfd, &one, sizeof(one));
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

/* 0 or -errno; none is an error, fewer than THREADS are not. */
static int start_threads(struct reader *r)
{
	int err = 0;

	while (r->threads < THREADS && !err) {
		err = thread_new(&r->thread[r->threads], work_thread, r);
		r->threads += !err;
	}
	return r->threads ? 0 : err_set(err, "reader: cannot start a thread: %m");
}

/* The variable lets tests and operators choose the threads where io_uring works. */
static bool start_ring(struct reader *r)
{
	if (getenv("INFILL_NO_IO_URING") || io_uring_queue_init(DEPTH, &r->ring, 0))
		return false;
	if (!io_uring_register_eventfd(&r->ring, r->eventfd))
		return true;
	io_uring_queue_exit(&r->ring);
	return false;
}

int reader_new(struct reader **reader)
{
	struct reader *r = calloc(1, sizeof(*r));
	int err = 0;

	if (!r)
		return err_set(-ENOMEM, "reader: %m");
	r->queued.last = &r->queued.first;
	r->given.last = &r->given.first;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->work, NULL);
	r->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->eventfd < 0)
		err = err_set(-errno, "reader: eventfd: %m");
	else
		r->ring_works = start_ring(r);
	if (!err && !r->ring_works)
		err = start_threads(r);
	if (err) {
		reader_free(r);
		return err;
	}
	*reader = r;
	return 0;
}

int reader_fd(const struct reader *r)
{
	return r->eventfd;
}

static void give_to_threads(struct reader *r, struct reader_request *q)
{
	pthread_mutex_lock(&r->lock);
	enqueue(&r->given, q);
	pthread_cond_signal(&r->work);
	pthread_mutex_unlock(&r->lock);
}

void reader_submit(struct reader *r, struct reader_request *q)
{
	r->busy++;
	if (r->ring_works)
		enqueue(&r->queued, q);
	else
		give_to_threads(r, q);
}

void reader_flush(struct reader *r)
{
	if (!r->queued.first)
		return;
	while (r->queued.first && r->in_ring < DEPTH) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
		struct reader_request *q;

		if (!sqe)
			break;
		q = dequeue(&r->queued);
		image_prep(q->image, sqe, q->offset, q->buffer, q->length);
		io_uring_sqe_set_data(sqe, q);
		r->in_ring++;
	}
	/* EAGAIN and EBUSY leave entries in the ring for the next call. */
	io_uring_submit(&r->ring);
}

/* One completion of the ring; NULL if there is none. */
static struct reader_request *reap_ring(struct reader *r)
{
	struct io_uring_cqe *cqe;

	while (r->in_ring && !io_uring_peek_cqe(&r->ring, &cqe)) {
		struct reader_request *q = io_uring_cqe_get_data(cqe);

		q->result = image_end(q->image, cqe->res, q->offset, q->length);
		io_uring_cqe_seen(&r->ring, cqe);
		r->in_ring--;
		if (q->result != -EAGAIN)
			return q;
		enqueue(&r->queued, q); /* interrupted, or short: read again */
	}
	return NULL;
}

static struct reader_request *reap_threads(struct reader *r)
{
	struct reader_request *q;

	pthread_mutex_lock(&r->lock);
	q = r->done;
	if (q)
		r->done = q->next;
	pthread_mutex_unlock(&r->lock);
	return q;
}

struct reader_request *reader_reap(struct reader *r)
{
	struct reader_request *q;

	if (!r->busy)
		return NULL;
	q = reap_ring(r);
	if (!q)
		q = reap_threads(r);
	if (q)
		r->busy--;
	else
		reader_flush(r);
	return q;
}

void reader_seen(struct reader *r)
{
	uint64_t count;

	(void)!read(r->eventfd, &count, sizeof(count));
}

unsigned reader_busy(const struct reader *r)
{
	return r->busy;
}

void reader_free(struct reader *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_cond_broadcast(&r->work);
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0; i < r->threads; i++)
		pthread_join(r->thread[i], NULL);
	if (r->ring_works)
		io_uring_queue_exit(&r->ring);
	if (r->eventfd >= 0)
		close(r->eventfd);
	pthread_cond_destroy(&r->work);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
