// SPDX-License-Identifier: MIT
/*
 * Tells whether THP, the pool of 2 MiB pages and vm.swappiness are as its arguments say. To look
 * at another setting add a line to main's table and an argument to the self-setting* cases.
 */
#include <stdio.h>
#include <string.h>

/* Read the word that is chosen: in brackets, or the only one. */
static int read_word(const char *path, char *text, int size)
{
	FILE *file = fopen(path, "r");
	char *begin;

	if (!file || !fgets(text, size, file)) {
		perror(path);
		return -1;
	}
	fclose(file);
	begin = strchr(text, '[');
	if (begin) {
		memmove(text, begin + 1, strlen(begin));
		text[strcspn(text, "]")] = '\0';
	}
	text[strcspn(text, "\n")] = '\0';
	return 0;
}

int main(int argc, char **argv)
{
	static const char *const paths[] = {
		"/sys/kernel/mm/transparent_hugepage/enabled",
		"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
		"/proc/sys/vm/swappiness",
	};
	char text[128];
	int bad = 0;

	for (int i = 0; i < 3; i++) {
		if (argc != 4 || read_word(paths[i], text, sizeof(text)))
			return 2;
		printf("%s: %s\n", paths[i], text);
		bad |= strcmp(text, argv[i + 1]) != 0;
	}
	return bad;
}
