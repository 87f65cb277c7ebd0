/* Loops over rows of logits: the same operations in the same order wherever they run, with no contraction of a product and a sum (-std=c11). */
#include "softmax.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

enum { SUM_LANES = 16 };

/* The group, or a copy that is filled up with negative infinity. */
static const float* whole_group(const float* row, int64_t size, int64_t group, float copy[GROUP]) {
  int64_t begin = group * GROUP;
  if (size - begin >= GROUP) return row + begin;
  for (int64_t i = 0; i < GROUP; ++i) copy[i] = begin + i < size ? row[begin + i] : -__builtin_inff();
  return copy;
}

static float sum_of_lanes(float lanes[SUM_LANES]) {
  for (int width = SUM_LANES / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

#define LANES 4
#define VARIANT(name) name##_of_4
#define TARGET
#include "softmax_lanes.h"
#undef LANES
#undef VARIANT
#undef TARGET

#if defined(__x86_64__)
#define LANES 8
#define VARIANT(name) name##_of_8
#define TARGET __attribute__((target("avx2")))
#include "softmax_lanes.h"
#undef LANES
#undef VARIANT
#undef TARGET

#define LANES 16
#define VARIANT(name) name##_of_16
#define TARGET __attribute__((target("avx512f")))
#include "softmax_lanes.h"
#undef LANES
#undef VARIANT
#undef TARGET
#endif

float row_max(const float* row, int64_t size, float* maxima) {
#if defined(__x86_64__)
  if (host_has("avx512f")) return row_max_of_16(row, size, maxima);
  if (host_has("avx2")) return row_max_of_8(row, size, maxima);
#endif
  return row_max_of_4(row, size, maxima);
}

double row_weights(const float* row, int64_t size, float largest, float scale, float* weights, float* sums) {
#if defined(__x86_64__)
  if (host_has("avx512f")) return row_weights_of_16(row, size, largest, scale, weights, sums);
  if (host_has("avx2")) return row_weights_of_8(row, size, largest, scale, weights, sums);
#endif
  return row_weights_of_4(row, size, largest, scale, weights, sums);
}

double row_weighted_sum(const float* row, int64_t size, float largest, float scale, const float* weights) {
#if defined(__x86_64__)
  if (host_has("avx512f")) return row_weighted_sum_of_16(row, size, largest, scale, weights);
  if (host_has("avx2")) return row_weighted_sum_of_8(row, size, largest, scale, weights);
#endif
  return row_weighted_sum_of_4(row, size, largest, scale, weights);
}

void exponentials(float* values, int64_t size) {
  for (int64_t i = 0; i < size; i += 4) {
    size_t bytes = sizeof(float) * (size_t)(size - i < 4 ? size - i : 4);
    floats_of_4 x = {0};
    memcpy(&x, values + i, bytes);
    x = exponential_of_4(x);
    memcpy(values + i, &x, bytes);
  }
}

/* value = 2^n m with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh((m - 1) / (m + 1)). */
double logarithm(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  int64_t n = (int64_t)((bits + 0x00095F619980C433ull) >> 52) - 1023; /* carries where the mantissa is sqrt(2) or more */
  bits -= (uint64_t)n << 52;
  double m;
  memcpy(&m, &bits, sizeof m);
  double s = (m - 1) / (m + 1), square = s * s, series = 0;
  for (int k = 25; k >= 1; k -= 2) series = series * square + 1.0 / k;
  return (double)n * 0.693147180559945309417 + 2 * s * series;
}

/* Adds the weights to bins by some bits of their keys. Neighbors, which often share a bin, go to two sets: one addition needn't wait for the other. */
static void fill_bins(const uint32_t* keys, const float* weights, int64_t size, int shift, uint32_t num_bins, double (*bins)[NUM_BINS]) {
  for (int set = 0; set < 2; ++set) memset(bins[set], 0, sizeof(double) * num_bins);
  for (int64_t i = 0; i < size; ++i) bins[i & 1][keys[i] >> shift & (num_bins - 1)] += weights ? weights[i] : 1;
  for (uint32_t bin = 0; bin < num_bins; ++bin) bins[0][bin] += bins[1][bin];
}

static bool all_equal(const uint32_t* keys, int64_t size) {
  int64_t i = 1;
  while (i < size && keys[i] == keys[0]) ++i;
  return size > 0 && i == size;
}

/* Radix selection: a histogram of the highest bits, then of the next of those in the bin that reaches the target. */
llmos_prefix smallest_prefix(const uint32_t* keys, const float* weights, int64_t size, double target, llmos_selection* scratch) {
  static const int SHIFTS[] = {21, 10, 0}, BITS[] = {11, 11, 10};
  llmos_prefix result = {0, 0};
  double total = 0;
  for (int level = 0; level < 3; ++level) {
    uint32_t num_bins = 1u << BITS[level], bin = 0;
    fill_bins(keys, weights, size, SHIFTS[level], num_bins, scratch->bins);
    const double* bins = scratch->bins[0];
    while (bin < num_bins - 1 && (bins[bin] == 0 || total + bins[bin] < target)) total += bins[bin++];
    result.last |= bin << SHIFTS[level];
    int64_t num_left = 0;
    for (int64_t i = 0; i < size; ++i) {
      scratch->keys[num_left] = keys[i];
      if (weights) scratch->weights[num_left] = weights[i];
      num_left += keys[i] >> SHIFTS[level] == result.last >> SHIFTS[level];
    }
    keys = scratch->keys;
    weights = weights ? scratch->weights : NULL;
    size = num_left;
    if (all_equal(keys, size)) { /* as many equal logits are */
      result.last = keys[0];
      break;
    }
  }
  for (; result.num_last < size && (total < target || result.num_last == 0); ++result.num_last) total += weights ? weights[result.num_last] : 1;
  return result;
}
