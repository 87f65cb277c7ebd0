/* One process, everything at once, for a build with the thread sanitizer: programs that many threads run, others that are opened and
 * closed meanwhile, the pool changing its size. `program ARTIFACT`: the hand-written artifact, whose entry "main" is x * scale + shift. */
#include "core.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { NUM_RUNNERS = 4, NUM_RELOADERS = 2, RUNS = 60, RELOADS = 12, MAX_ROWS = 400 };
#define REQUIRE(condition) \
  if (!(condition)) printf("line %d: %s: %s\n", __LINE__, #condition, llmos_last_error()), exit(1)

static const float SCALE[] = {1.0f, 2.0f, -3.0f, 0.5f}, SHIFT[] = {0.25f, -1.0f, 4.0f, 8.0f};
static const char* path;
static llmos_program* shared[2];
static atomic_bool stop;

static DLTensor tensor_of(float* data, int64_t* shape) {
  return (DLTensor){.data = data, .device = {1, 0}, .ndim = 2, .dtype = {2, 32, 1}, .shape = shape};
}

static void run_and_check(llmos_program* program, int64_t rows) {
  float *x = malloc((size_t)rows * 4 * sizeof *x), *y = malloc((size_t)rows * 4 * sizeof *y);
  int64_t shape[] = {rows, 4}, dims[2], wrong[] = {rows, 5};
  for (int64_t i = 0; i < rows * 4; ++i) x[i] = (float)(i % 97);
  DLTensor in = tensor_of(x, shape), out = tensor_of(y, shape), bad = tensor_of(x, wrong);
  const DLTensor *inputs[] = {&in}, *outputs[] = {&out}, *refused[] = {&bad};
  int32_t entry = llmos_program_entry(program, "main");
  REQUIRE(llmos_program_shapes(program, entry, inputs, 1, dims) == LLMOS_OK && dims[0] == rows && dims[1] == 4);
  REQUIRE(llmos_program_run(program, entry, inputs, 1, outputs, 1, LLMOS_POISON_ARENA, NULL) == LLMOS_OK);
  for (int64_t i = 0; i < rows * 4; ++i) REQUIRE(y[i] == x[i] * SCALE[i % 4] + SHIFT[i % 4]);
  REQUIRE(llmos_program_run(program, entry, refused, 1, outputs, 1, 0, NULL) == LLMOS_ERROR_INPUT && *llmos_last_error());
  free(x);
  free(y);
}

static llmos_program* load(void) {
  llmos_artifact* artifact;
  llmos_program* program;
  REQUIRE(llmos_artifact_open(path, &artifact) == LLMOS_OK);
  REQUIRE(llmos_program_open(artifact, -1, LLMOS_TRUST_ALWAYS, &program) == LLMOS_OK);
  llmos_artifact_close(artifact); /* the program keeps its own reference */
  return program;
}

static void* runner(void* argument) {
  for (int64_t i = 0; i < RUNS; ++i) run_and_check(shared[(i + (intptr_t)argument) % 2], 1 + (i * 37 + (intptr_t)argument * 11) % MAX_ROWS);
  return NULL;
}

static void* reloader(void* argument) {
  for (int64_t i = 0; i < RELOADS; ++i) {
    llmos_program* program = load();
    run_and_check(program, 1 + (i * 61 + (intptr_t)argument) % MAX_ROWS);
    llmos_program_close(program);
  }
  return NULL;
}

static void* resizer(void* argument) {
  (void)argument;
  for (int32_t i = 0; !atomic_load(&stop); ++i) REQUIRE(llmos_set_num_threads(1 + i % 4) == LLMOS_OK && llmos_num_threads() >= 1);
  return NULL;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  path = argv[1];
  pthread_t threads[NUM_RUNNERS + NUM_RELOADERS], last;
  for (int i = 0; i < 2; ++i) shared[i] = load();
  for (intptr_t i = 0; i < NUM_RUNNERS + NUM_RELOADERS; ++i) {
    REQUIRE(pthread_create(&threads[i], NULL, i < NUM_RUNNERS ? runner : reloader, (void*)i) == 0);
  }
  REQUIRE(pthread_create(&last, NULL, resizer, NULL) == 0);
  for (int i = 0; i < NUM_RUNNERS + NUM_RELOADERS; ++i) pthread_join(threads[i], NULL);
  atomic_store(&stop, true);
  pthread_join(last, NULL);
  for (int i = 0; i < 2; ++i) {
    REQUIRE(llmos_program_check(shared[i]) == LLMOS_OK);
    llmos_program_close(shared[i]);
  }
  return 0;
}
