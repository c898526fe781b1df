// SPDX-License-Identifier: MIT
/*
 * What the demo compares infill with: a pager as the example handlers are written.
 *
 * One thread; poll, read one event, copy one page from the mapped image, again. It takes the
 * handshake of Firecracker: one message with JSON and a userfaultfd. Keep it plain: an improvement
 * here belongs into infill, and would make the comparison say less.
 *
 *	naive SOCKET IMAGE	serve one VMM; on SIGUSR1 and at SIGTERM print what was done as JSON
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_REGIONS	16

struct region {
	uint64_t base, size, offset, page_size;
};

static struct region regions[MAX_REGIONS];
static unsigned int region_count;
static struct { uint64_t faults, stall_ns, last_ns; } done;
static volatile sig_atomic_t wants_report, wants_end;

static void on_signal(int sig)
{
	if (sig == SIGTERM)
		wants_end = 1;
	wants_report = 1;
}

static void die(const char *what)
{
	fprintf(stderr, "naive: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(address.sun_path, path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1))
		die(path);
	return fd;
}

/* Receive the text and the userfaultfd that comes with it. */
static int receive(int socket_fd, char *text, size_t size)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { .iov_base = text, .iov_len = size - 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t length = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
	int fd;

	if (length <= 0)
		die("handshake");
	text[length] = 0;
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS) {
		errno = EPROTO;
		die("handshake without userfaultfd");
	}
	memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

static uint64_t field(const char *object, const char *name, uint64_t otherwise)
{
	const char *end = strchr(object, '}'), *at = strstr(object, name);

	if (!at || (end && at > end))
		return otherwise;
	at = strchr(at, ':');
	return at ? strtoull(at + 1, NULL, 10) : otherwise;
}

static void parse(const char *text)
{
	const char *at = text;

	while ((at = strchr(at, '{')) && region_count < MAX_REGIONS) {
		regions[region_count++] = (struct region){
			.base = field(at, "\"base_host_virt_addr\"", 0),
			.size = field(at, "\"size\"", 0),
			.offset = field(at, "\"offset\"", 0),
			.page_size = field(at, "\"page_size\"", 4096),
		};
		at++;
	}
	if (!region_count) {
		errno = EPROTO;
		die("handshake without regions");
	}
}

static char *map_image(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *image;

	if (fd < 0 || fstat(fd, &st))
		die(path);
	image = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (image == MAP_FAILED)
		die(path);
	close(fd);
	return image;
}

static void copy_page(int uffd, const char *image, uint64_t address)
{
	for (unsigned int i = 0; i < region_count; i++) {
		const struct region *r = &regions[i];
		uint64_t offset = (address - r->base) & ~(r->page_size - 1);
		struct uffdio_copy copy = {
			.dst = r->base + offset,
			.src = (uint64_t)(uintptr_t)(image + r->offset + offset),
			.len = r->page_size,
		};
		struct uffdio_range range = { .start = copy.dst, .len = copy.len };

		if (address < r->base || address - r->base >= r->size)
			continue;
		while (ioctl(uffd, UFFDIO_COPY, &copy) && errno != ESRCH) {
			if (errno == EEXIST && !ioctl(uffd, UFFDIO_WAKE, &range))
				return;
			if (errno != EAGAIN)
				die("UFFDIO_COPY");
			copy.copy = 0;
		}
		return;
	}
	errno = EFAULT;
	die("fault outside of all regions");
}

static void report(void)
{
	printf("{\"faults\": %" PRIu64 ", \"stall_ns\": %" PRIu64 ", \"last_ns\": %" PRIu64 "}\n",
	       done.faults, done.stall_ns, done.last_ns);
	fflush(stdout);
	wants_report = 0;
}

static void serve_one(int uffd, const char *image)
{
	struct uffd_msg event;
	uint64_t start = now();

	if (read(uffd, &event, sizeof(event)) != (ssize_t)sizeof(event))
		return;
	if (event.event != UFFD_EVENT_PAGEFAULT) {
		errno = ENOTSUP;
		die("event other than a page fault");
	}
	copy_page(uffd, image, event.arg.pagefault.address);
	done.faults++;
	done.last_ns = now();
	done.stall_ns += done.last_ns - start;
}

static void serve(int uffd, const char *image, const sigset_t *mask)
{
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };

	while (!wants_end) {
		if (ppoll(&poll_fd, 1, NULL, mask) > 0)
			serve_one(uffd, image);
		if (wants_report)
			report();
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t block, mask;
	char text[4096], *image;
	int listener, connection, uffd;

	if (argc != 3) {
		fprintf(stderr, "usage: naive SOCKET IMAGE\n");
		return 2;
	}
	image = map_image(argv[2]);
	listener = listen_at(argv[1]);
	puts("listening");
	fflush(stdout);
	connection = accept(listener, NULL, NULL);
	if (connection < 0)
		die("accept");
	uffd = receive(connection, text, sizeof(text));
	parse(text);
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, &mask);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	serve(uffd, image, &mask);
	return 0;
}
