/* Rows of any logits with any settings, senseless ones too, in memory of exactly their size: for the address sanitizer. */
#include <llmos/sampling.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t state = 1;

static uint32_t next(void) { /* splitmix64 */
  uint64_t z = (state += 0x9E3779B97F4A7C15ull);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return (uint32_t)(z >> 32);
}

static double any_of(const double* values, uint32_t count) { return values[next() % count]; }

static const double NUMBERS[] = {0, 1, 0.5, 0.9, 1e-300, 1e300, -1, -0.5, 2, 1e-9};
static const double SPECIALS[] = {__builtin_inf(), -__builtin_inf(), __builtin_nan(""), 0, 1, -1, 3e38, -3e38, 1e-45};

static double number(void) { return next() % 8 ? any_of(NUMBERS, 10) : any_of(SPECIALS, 9); }

static int32_t* random_ids(int64_t count, int64_t size) {
  int32_t* ids = malloc(sizeof *ids * (size_t)count);
  for (int64_t i = 0; i < count; ++i) ids[i] = next() % 200 ? (int32_t)(next() % (uint64_t)size) : (int32_t)next();
  return ids;
}

static float* random_logits(int64_t count) {
  float* logits = malloc(sizeof *logits * (size_t)count);
  uint32_t kind = next() % 5;
  for (int64_t i = 0; i < count; ++i) {
    logits[i] = (float)(next() % 1000) / 50 - 10;
    if (kind == 0) logits[i] = 1;
    if (kind == 1) logits[i] = (float)(next() % 3);
    if (kind == 2 && next() % 2) logits[i] = -__builtin_inff();
    if (next() % 5000 == 0) logits[i] = (float)any_of(SPECIALS, 9);
  }
  return logits;
}

static int report(const char* what, int number) {
  fprintf(stderr, "case %d: %s\n", number, what);
  return 1;
}

int main(int argc, char** argv) {
  int cases = argc > 1 ? atoi(argv[1]) : 1000;
  int sampled = 0, failed = 0;
  for (int i = 0; i < cases; ++i) {
    int64_t size = next() % 4 ? 1 + next() % 300 : 1 + next() % 20000;
    int32_t max_top = (int32_t)(next() % 3 * (next() % 6));
    float* logits = random_logits(2 * size);
    llmos_sampling settings[2];
    llmos_sampling_row rows[2];
    llmos_sampled results[2];
    llmos_token_logprob* tops = malloc(sizeof *tops * 2 * (size_t)(max_top + 1));
    uint32_t* allowed = malloc(sizeof *allowed * (size_t)((size + 31) / 32));
    for (int64_t word = 0; word < (size + 31) / 32; ++word) allowed[word] = next() & next();
    int32_t *ids = random_ids(40, size), *bias_ids = random_ids(3, size);
    const float biases[] = {(float)number(), (float)number(), -__builtin_inff()};
    for (int row = 0; row < 2; ++row) {
      settings[row] = (llmos_sampling){number(), number(), number(), number(), next() % 2 ? 1 : number(), next() % 2 ? 0 : number(),
                                       next() % 2 ? 0 : number(), next(), bias_ids, biases, (int32_t)(next() % 2 * 3),
                                       (int32_t)(next() % 3 ? next() % 100 : next()), (int32_t)(next() % 8) - 1, 0};
      rows[row] = (llmos_sampling_row){next(), ids, ids + 20, next() % 2 ? allowed : NULL, 20, 20};
    }
    if (llmos_sample(logits, 2, size, settings, rows, results, max_top ? tops : NULL, max_top)) return report(llmos_last_error(), i);
    for (int row = 0; row < 2; ++row) {
      if (results[row].status) {
        ++failed;
        continue;
      }
      ++sampled;
      if (results[row].token < 0 || results[row].token >= size || results[row].num_top > max_top)
        return report("a result is out of range", i);
      if (rows[row].allowed && !(allowed[results[row].token / 32] >> results[row].token % 32 & 1))
        return report("a forbidden token was sampled", i);
    }
    free(logits), free(tops), free(allowed), free(ids), free(bias_ids);
  }
  printf("sampled %d failed %d\n", sampled, failed);
  return sampled && failed ? 0 : report("nothing was sampled, or nothing refused", cases);
}
