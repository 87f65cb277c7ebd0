/* Vectors of every width give the same bits: of 8 and 16 lanes as this machine runs them, and as the compiler splits them where it can't. */
#include "softmax.c"

#include <stdio.h>
#include <stdlib.h>

#define TARGET
#define LANES 8
#define VARIANT(name) name##_split_8
#include "softmax_lanes.h"
#undef LANES
#undef VARIANT
#define LANES 16
#define VARIANT(name) name##_split_16
#include "softmax_lanes.h"

typedef float (*max_function)(const float*, int64_t, float*);
typedef double (*weights_function)(const float*, int64_t, float, float, float*, float*);

typedef double (*sum_function)(const float*, int64_t, float, float, const float*);

static const sum_function SUMS[] = {row_weighted_sum_of_4, row_weighted_sum_split_8, row_weighted_sum_split_16, row_weighted_sum};
static const max_function MAXIMA[] = {row_max_of_4, row_max_split_8, row_max_split_16, row_max};
static const weights_function WEIGHTS[] = {row_weights_of_4, row_weights_split_8, row_weights_split_16, row_weights};
enum { MAX_SIZE = 700, MAX_GROUPS = 11 };

typedef struct {
  float largest, maxima[MAX_GROUPS], weights[MAX_SIZE], sums[MAX_GROUPS];
  double total, weighted;
} outcome;

static float any_number(void) {
  static const float SPECIALS[] = {0, -0.0f, 1e-45f, 3e38f, -3e38f, -87, -88, 1};
  int kind = rand() % 40;
  if (kind < 8) return SPECIALS[kind];
  return kind == 8 ? -__builtin_inff() : (float)(rand() % 100000) / 1000 - 50;
}

int main(void) {
  for (int number = 0; number < 3000; ++number) {
    int64_t size = 1 + rand() % MAX_SIZE;
    float row[MAX_SIZE], scale = (float)(1 + rand() % 300) / 100;
    for (int64_t i = 0; i < size; ++i) row[i] = any_number();
    static outcome outcomes[4];
    memset(outcomes, 0, sizeof outcomes);
    for (int width = 0; width < 4; ++width) {
      outcome* found = outcomes + width;
      found->largest = MAXIMA[width](row, size, found->maxima);
      found->total = WEIGHTS[width](row, size, outcomes[0].largest, scale, found->weights, found->sums);
      found->weighted = SUMS[width](row, size, outcomes[0].largest, scale, outcomes[0].weights);
      bool same = found->weighted == outcomes[0].weighted && found->weighted <= 0;
      same &= found->largest == outcomes[0].largest && found->total == outcomes[0].total;
      for (int64_t group = 0; group < groups_of(size); ++group) same &= found->maxima[group] == outcomes[0].maxima[group];
      same &= memcmp(found->weights, outcomes[0].weights, sizeof found->weights) == 0;
      if (!same || memcmp(found->sums, outcomes[0].sums, sizeof found->sums)) return printf("row %d, width %d differs\n", number, width), 1;
    }
    row[rand() % size] = __builtin_nanf("");
    for (int width = 0; width < 4; ++width) {
      float largest = MAXIMA[width](row, size, outcomes[0].maxima);
      if (largest == largest) return printf("row %d, width %d: a NaN is lost\n", number, width), 1;
    }
  }
  return 0;
}
