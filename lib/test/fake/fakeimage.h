/* SPDX-License-Identifier: MIT */
/*
 * fakeimage.h: image files for tests, whose every word is known from its
 * offset.  Test support; may change freely.
 *
 * An image is cut into grains.  A grain is data (no word of it is zero), zero
 * (written zeros) or a hole, by a hash of its number, so that any process
 * that has the struct knows what a byte must be without reading the file.
 */
#ifndef FAKEIMAGE_H
#define FAKEIMAGE_H

#include <stdint.h>

#define FAKE_PAGE 4096u
#define FAKE_HUGE (2u << 20)

struct fakeimage {
	char path[160];      /* set by fakeimage_make() */
	uint64_t bytes;
	uint64_t seed;
	uint64_t grain;      /* 0: FAKE_PAGE */
	unsigned hole_every; /* about one grain of so many is a hole; 0: none */
	unsigned zero_every; /* about one grain of so many is written zeros; 0: none */
};

enum fakeimage_kind { FAKEIMAGE_DATA, FAKEIMAGE_ZERO, FAKEIMAGE_HOLE };

/* A hash of X; never the same for two X. */
uint64_t fake_mix(uint64_t x);

/* A sanitizer makes a program several times as slow: time limits are multiplied by this. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define FAKE_SLOWNESS 3u
#else
#define FAKE_SLOWNESS 1u
#endif

/*
 * A folder for this process' files; it and what is in it is removed when the
 * process exits.  Under $TMPDIR or /tmp.
 */
const char *fake_dir(void);

/* Write "what: why" (with errno's text) to stderr and exit: a set-up step of the test failed. */
void fake_die(const char *what) __attribute__((noreturn));

/* Write the file.  The fields but `path` are set by the caller.  Dies if it cannot. */
void fakeimage_make(struct fakeimage *image);

/* Remove the file. */
void fakeimage_remove(struct fakeimage *image);

/* Let go of the file's page cache: the next reads come from the device. */
void fakeimage_cool(const struct fakeimage *image);

enum fakeimage_kind fakeimage_kind(const struct fakeimage *image, uint64_t offset);

/* The 8 bytes at OFFSET, a multiple of 8. */
uint64_t fakeimage_word(const struct fakeimage *image, uint64_t offset);

/* LENGTH bytes from OFFSET on, both multiples of 8. */
void fakeimage_fill(const struct fakeimage *image, uint64_t offset, void *buffer, uint64_t length);

/* How many pages of PAGE bytes have a word that is not zero. */
uint64_t fakeimage_data_pages(const struct fakeimage *image, uint64_t page);

#endif
