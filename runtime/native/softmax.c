/* Loops over rows of logits, four lanes at a time: the same operations in the same order wherever they run, with no contraction of a product
 * and a sum (-std=c11). */
#include "softmax.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(16)));

enum { LANES = 4 };

static inline floats load(const float* source) {
  floats result;
  memcpy(&result, source, sizeof result);
  return result;
}

static inline floats splat(float value) { return (floats){value, value, value, value}; }

static inline floats select_lanes(ints condition, floats yes, floats no) {
  return (floats)((condition & (ints)yes) | (~condition & (ints)no));
}

/* The group, or a copy that is filled up with negative infinity. */
static const float* whole_group(const float* row, int64_t size, int64_t group, float copy[GROUP]) {
  int64_t begin = group * GROUP;
  if (size - begin >= GROUP) return row + begin;
  for (int64_t i = 0; i < GROUP; ++i) copy[i] = begin + i < size ? row[begin + i] : -__builtin_inff();
  return copy;
}

float row_max(const float* row, int64_t size, float* maxima) {
  float copy[GROUP], result = -__builtin_inff();
  ints unordered = {0};
  for (int64_t group = 0; group < groups_of(size); ++group) {
    const float* values = whole_group(row, size, group, copy);
    floats first = load(values), second = load(values + LANES);
    for (int64_t i = 0; i < GROUP; i += 2 * LANES) {
      floats one = load(values + i), other = load(values + i + LANES);
      unordered |= (one != one) | (other != other);
      first = select_lanes(first > one, first, one);
      second = select_lanes(second > other, second, other);
    }
    first = select_lanes(first > second, first, second);
    float largest = first[0];
    for (int lane = 1; lane < LANES; ++lane) largest = first[lane] > largest ? first[lane] : largest;
    maxima[group] = largest;
    result = largest > result ? largest : result;
  }
  return unordered[0] | unordered[1] | unordered[2] | unordered[3] ? __builtin_nanf("") : result;
}

/* 2^n e^r with |r| <= ln(2)/2; the polynomial is that of Cephes' expf. */
static inline floats exponential(floats x) {
  const floats round = splat(12582912.0f); /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
  floats shifted = x * splat(1.44269504088896341f) + round;
  floats n = shifted - round;
  floats r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
  floats p = splat(1.9875691500e-4f) * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  floats power = (floats)(((words)shifted << 23) + 0x3F800000u);
  return (floats)((ints)(p * power) & (x > splat(-87.0f))); /* below, and of negative infinity, the rest made no sense */
}

double row_weights(const float* row, int64_t size, float largest, float scale, float* weights, float* sums) {
  float copy[GROUP], results[GROUP];
  floats offset = splat(largest), factor = splat(scale);
  double total = 0;
  for (int64_t group = 0; group < groups_of(size); ++group) {
    const float* values = whole_group(row, size, group, copy);
    floats sum = splat(0.0f);
    for (int64_t i = 0; i < GROUP; i += LANES) {
      floats weight = exponential((load(values + i) - offset) * factor);
      memcpy(results + i, &weight, sizeof weight);
      sum += weight;
    }
    int64_t begin = group * GROUP;
    if (weights) memcpy(weights + begin, results, sizeof(float) * (size_t)(size - begin < GROUP ? size - begin : GROUP));
    float group_sum = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (sums) sums[group] = group_sum;
    total += group_sum;
  }
  return total;
}

void exponentials(float* values, int64_t size) {
  for (int64_t i = 0; i < size; i += LANES) {
    size_t bytes = sizeof(float) * (size_t)(size - i < LANES ? size - i : LANES);
    floats x = splat(0.0f);
    memcpy(&x, values + i, bytes);
    x = exponential(x);
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
