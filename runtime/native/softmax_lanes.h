/* The loops of softmax.c for vectors of LANES elements: included once for each width, with VARIANT(name) its names and TARGET its processor.
 *
 * All widths give the same bits: elements are computed alike, and a group is summed in SUM_LANES running sums whatever LANES is. */

#define floats VARIANT(floats)
#define ints VARIANT(ints)
#define words VARIANT(words)
#define load VARIANT(load)
#define select_lanes VARIANT(select_lanes)
#define exponential VARIANT(exponential)

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

TARGET static inline floats load(const float* source) {
  floats result;
  memcpy(&result, source, sizeof result);
  return result;
}

TARGET static inline floats select_lanes(ints condition, floats yes, floats no) {
  return (floats)((condition & (ints)yes) | (~condition & (ints)no));
}

/* Of x <= 0: 2^n e^r with |r| <= ln(2)/2; the polynomial is that of Cephes' expf. Adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
TARGET static inline floats exponential(floats x) {
  floats shifted = x * 1.44269504088896341f + 12582912.0f;
  floats n = shifted - 12582912.0f;
  floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
  floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  floats power = (floats)(((words)shifted << 23) + 0x3F800000u);
  return (floats)((ints)(p * power) & (x > -87.0f)); /* below, and of negative infinity, the rest made no sense */
}

TARGET static float VARIANT(row_max)(const float* row, int64_t size, float* maxima) {
  float copy[GROUP], lanes[2 * LANES], result = -__builtin_inff();
  int32_t unordered_lanes[LANES], any = 0;
  ints unordered = {0};
  for (int64_t group = 0; group < groups_of(size); ++group) {
    const float* values = whole_group(row, size, group, copy);
    floats largest[2] = {load(values), load(values + LANES)};
    for (int64_t i = 0; i < GROUP; i += 2 * LANES) {
      floats first = load(values + i), second = load(values + i + LANES);
      unordered |= (first != first) | (second != second);
      largest[0] = select_lanes(largest[0] > first, largest[0], first);
      largest[1] = select_lanes(largest[1] > second, largest[1], second);
    }
    memcpy(lanes, largest, sizeof lanes);
    maxima[group] = lanes[0];
    for (int lane = 1; lane < 2 * LANES; ++lane) maxima[group] = lanes[lane] > maxima[group] ? lanes[lane] : maxima[group];
    result = maxima[group] > result ? maxima[group] : result;
  }
  memcpy(unordered_lanes, &unordered, sizeof unordered_lanes);
  for (int lane = 0; lane < LANES; ++lane) any |= unordered_lanes[lane];
  return any ? __builtin_nanf("") : result;
}

TARGET static double VARIANT(row_weights)(const float* row, int64_t size, float largest, float scale, float* weights, float* sums) {
  float copy[GROUP], results[GROUP], lanes[SUM_LANES];
  double total = 0;
  for (int64_t group = 0; group < groups_of(size); ++group) {
    const float* values = whole_group(row, size, group, copy);
    floats running[SUM_LANES / LANES] = {0};
    for (int64_t i = 0; i < GROUP; i += SUM_LANES) {
      for (int part = 0; part < SUM_LANES / LANES; ++part) {
        floats weight = exponential((load(values + i + part * LANES) - largest) * scale);
        memcpy(results + i + part * LANES, &weight, sizeof weight);
        running[part] += weight;
      }
    }
    int64_t begin = group * GROUP;
    if (weights) memcpy(weights + begin, results, sizeof(float) * (size_t)(size - begin < GROUP ? size - begin : GROUP));
    memcpy(lanes, running, sizeof lanes);
    float sum = sum_of_lanes(lanes);
    if (sums) sums[group] = sum;
    total += sum;
  }
  return total;
}

/* What of impossible elements is no number counts as 0. */
TARGET static double VARIANT(row_weighted_sum)(const float* row, int64_t size, float largest, float scale, const float* weights) {
  float copy[GROUP], weight_copy[GROUP], lanes[SUM_LANES];
  double total = 0;
  for (int64_t group = 0; group < groups_of(size); ++group) {
    const float *values = whole_group(row, size, group, copy), *heavy = whole_group(weights, size, group, weight_copy);
    floats running[SUM_LANES / LANES] = {0};
    for (int64_t i = 0; i < GROUP; i += SUM_LANES) {
      for (int part = 0; part < SUM_LANES / LANES; ++part) {
        floats difference = (load(values + i + part * LANES) - largest) * scale;
        floats product = difference * load(heavy + i + part * LANES);
        running[part] += (floats)((ints)product & (difference > -87.0f));
      }
    }
    memcpy(lanes, running, sizeof lanes);
    total += sum_of_lanes(lanes);
  }
  return total;
}

#undef floats
#undef ints
#undef words
#undef load
#undef select_lanes
#undef exponential
