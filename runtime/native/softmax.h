/* Rows of numbers: largest elements, exponentials, and selection without a sort. Of sampling.c. */
#ifndef LLMOS_SOFTMAX_H_
#define LLMOS_SOFTMAX_H_

#include "core.h"

/* Rows are read in groups, whose maxima and sums later tell which groups need no second look. */
enum { GROUP = 64, NUM_BINS = 2048 };

static inline int64_t groups_of(int64_t size) { return (size + GROUP - 1) / GROUP; }

/* The largest element, and of each group; NaN where there is a NaN. */
float row_max(const float* row, int64_t size, float* maxima);

/* exp((row - largest) * scale), for scale > 0: the sum of all, in a fixed order. sums: of each group; weights: of each element; either may be
 * NULL. Below exp(-87) is 0; the relative error is about 2^-23, and exp(0) is 1. */
double row_weights(const float* row, int64_t size, float largest, float scale, float* weights, float* sums);
/* The sum of weights times (row - largest) * scale, without the elements whose weight is 0. */
double row_weighted_sum(const float* row, int64_t size, float largest, float scale, const float* weights);
void exponentials(float* values, int64_t size); /* in place; of values <= 0 */
double logarithm(double value); /* of a positive normal number */

/* The smallest prefix, in ascending order of keys and then of index, whose total of weights (1 each where NULL) reaches the target, but one element
 * at least; everything where the total falls short. */
typedef struct {
  uint32_t last;    /* keys below belong to it */
  int64_t num_last; /* and so many of those that equal it, the lower indices first */
} llmos_prefix;
typedef struct {
  double (*bins)[NUM_BINS]; /* [2] */
  uint32_t* keys;           /* as many as there are elements, as of weights */
  float* weights;
} llmos_selection;
llmos_prefix smallest_prefix(const uint32_t* keys, const float* weights, int64_t size, double target, llmos_selection* scratch);

/* An integer that is smaller the larger the number is; of 0 and -0 the same. */
static inline uint32_t descending_key(float value) {
  uint32_t bits;
  value += 0.0f;
  memcpy(&bits, &value, sizeof bits);
  return bits ^ (~(uint32_t)((int32_t)bits >> 31) & 0x7FFFFFFFu);
}

#endif
