// A clock for the module whose wall clock is off by the nanoseconds in a file (e2e/clock_test.go).
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int stepped_clock(clockid_t clock, struct timespec *t) {
  static _Thread_local const volatile int64_t *step;
  if (!step) {
    int fd = open(getenv("GATEPOST_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof *step, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) abort();
    step = mapped;
  }
  if (clock_gettime(clock, t) != 0) return -1;
  if (clock != CLOCK_REALTIME) return 0;
  int64_t ns = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec + *step;
  t->tv_sec = ns / 1000000000, t->tv_nsec = ns % 1000000000;
  return 0;
}
