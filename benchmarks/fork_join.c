/* What the thread pool costs by itself, for threads.py and the tests: prints the median times of a launch without work, which its caller
 * can do alone, and of one whose tiles wait for each other, so that all threads must come, in ns; and the processor time that the whole
 * process uses in half a second after its last launch, in us: how long its threads look for more work. */
#include "core.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { NUM_LAUNCHES = 20000 };

static int32_t nothing(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)buffers, (void)dims, (void)begin, (void)end, (void)scratch;
  return LLMOS_OK;
}

/* A tile a thread; none ends before all have begun. */
static int32_t meet(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  _Atomic int64_t* arrived = buffers[0];
  (void)scratch;
  atomic_fetch_add(arrived, end - begin);
  for (int64_t looks = 0; atomic_load(arrived) < dims[0]; ++looks) {
    if (looks > 100000) sched_yield(); /* the other's thread has lost its core */
  }
  return LLMOS_OK;
}

static int ascending(const void* a, const void* b) {
  int64_t x = *(const int64_t*)a, y = *(const int64_t*)b;
  return (x > y) - (x < y);
}

static int64_t used_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int64_t median_ns(llmos_kernel kernel, int64_t num_tiles) {
  static int64_t times[NUM_LAUNCHES];
  for (int i = 0; i < NUM_LAUNCHES; ++i) {
    _Atomic int64_t arrived = 0;
    void* buffers[] = {&arrived};
    int64_t begin = now_ns();
    if (pool_launch(kernel, buffers, &num_tiles, num_tiles, 0) != LLMOS_OK) exit(1);
    times[i] = now_ns() - begin;
  }
  qsort(times, NUM_LAUNCHES, sizeof *times, ascending);
  return times[NUM_LAUNCHES / 2];
}

int main(int argc, char** argv) {
  if (argc != 2 || llmos_set_num_threads(atoi(argv[1])) != LLMOS_OK) return 2;
  int64_t alone = median_ns(nothing, 8), together = median_ns(meet, llmos_num_threads());
  int64_t before = used_ns();
  usleep(500000);
  printf("%lld %lld %lld\n", (long long)alone, (long long)together, (long long)(used_ns() - before) / 1000);
  return 0;
}
