/* Sampling of tokens; llmos/sampling.h says what is computed. No row is sorted: selections find a threshold, and look only into the groups
 * of a row whose largest element or sum shows that they matter. */
#include <llmos/sampling.h>

#include <stdlib.h>

#include "softmax.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

/* Scratch of one row: arrays of the vocabulary's size, or of its number of groups. */
typedef struct {
  float *scores, *weights, *maxima, *sums;
  int32_t* ids;   /* of the candidates, ascending */
  uint32_t* keys; /* what they are selected by */
  float* kept;    /* their weights */
  llmos_selection selection;
} llmos_work;

/* A row of logits, what its groups' maxima are, and its largest element. */
typedef struct {
  const float* values;
  const float* maxima;
  float largest;
  int64_t size;
} llmos_row;

typedef struct {
  const float* logits;
  const llmos_sampling* settings;
  const llmos_sampling_row* rows;
  llmos_sampled* results;
  llmos_token_logprob* tops;
  int64_t vocab_size;
  int32_t max_top;
} llmos_sampling_job;

static int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static int64_t work_bytes(int64_t size) {
  return 7 * aligned(size * 4) + 2 * aligned(groups_of(size) * 4) + 2 * NUM_BINS * (int64_t)sizeof(double);
}

static void lay_out(llmos_work* work, char* memory, int64_t size) {
  float** rows[] = {&work->scores, &work->weights, &work->kept, &work->selection.weights};
  int64_t row = aligned(size * 4), groups = aligned(groups_of(size) * 4);
  for (int i = 0; i < 4; ++i, memory += row) *rows[i] = (float*)memory;
  work->ids = (int32_t*)memory;
  work->keys = (uint32_t*)(memory + row);
  work->selection.keys = (uint32_t*)(memory + 2 * row);
  work->maxima = (float*)(memory + 3 * row);
  work->sums = (float*)(memory + 3 * row + groups);
  work->selection.bins = (double (*)[NUM_BINS])(memory + 3 * row + 2 * groups);
}

/* ---- Random numbers ---- */

/* Philox4x32-10 (Salmon et al., SC 2011) of the counter (position, 0) and the key seed: the first two words, the second in the high half. */
static uint64_t random_bits(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    uint64_t first = (uint64_t)counter[0] * 0xD2511F53u, second = (uint64_t)counter[2] * 0xCD9E8D57u;
    uint32_t next[4] = {(uint32_t)(second >> 32) ^ counter[1] ^ key[0], (uint32_t)second, (uint32_t)(first >> 32) ^ counter[3] ^ key[1],
                        (uint32_t)first};
    memcpy(counter, next, sizeof next);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter[0] | (uint64_t)counter[1] << 32;
}

/* In [0, 1), a multiple of 2^-53. */
static double uniform(uint64_t seed, uint64_t position) { return (double)(random_bits(seed, position) >> 11) * 0x1p-53; }

/* ---- Changes of logits ---- */

static bool changes_logits(const llmos_sampling* settings, const llmos_sampling_row* row) {
  return settings->num_biases > 0 || settings->repetition_penalty != 1 || settings->presence_penalty != 0 || settings->frequency_penalty != 0 ||
         row->allowed;
}

static bool all_inside(const int32_t* ids, int64_t count, int64_t size) {
  int32_t lowest = 0, highest = 0;
  for (int64_t i = 0; i < count; ++i) {
    lowest = ids[i] < lowest ? ids[i] : lowest;
    highest = ids[i] > highest ? ids[i] : highest;
  }
  return lowest >= 0 && highest < size;
}

/* Once for each token, however often it occurs. seen: a bit for each token. */
static void penalize_repetition(float* scores, const int32_t* ids, int64_t count, double penalty, uint32_t* seen) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t id = ids[i];
    uint32_t bit = 1u << (id & 31);
    if (seen[id >> 5] & bit) continue;
    seen[id >> 5] |= bit;
    scores[id] = (float)(scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty);
  }
}

static void penalize_counts(float* scores, const int32_t* ids, int64_t count, double presence, double frequency, uint32_t* counts) {
  for (int64_t i = 0; i < count; ++i) counts[ids[i]] = 0;
  for (int64_t i = 0; i < count; ++i) ++counts[ids[i]];
  for (int64_t i = 0; i < count; ++i) {
    int32_t id = ids[i];
    if (!counts[id]) continue;
    scores[id] = (float)(scores[id] - (presence + frequency * counts[id]));
    counts[id] = 0;
  }
}

static void mask_scores(float* scores, int64_t size, const uint32_t* allowed) {
  for (int64_t begin = 0; begin < size; begin += 32) {
    uint32_t word = allowed[begin / 32];
    if (word == UINT32_MAX) continue;
    for (int64_t i = begin; i < size && i < begin + 32; ++i) {
      if (!(word >> (i - begin) & 1)) scores[i] = -__builtin_inff();
    }
  }
}

static int32_t change_logits(const float* logits, int64_t size, const llmos_sampling* settings, const llmos_sampling_row* row, llmos_work* work) {
  bool repetition = settings->repetition_penalty != 1, counted = settings->presence_penalty != 0 || settings->frequency_penalty != 0;
  if (!all_inside(settings->bias_ids, settings->num_biases, size)) return LLMOS_ROW_BAD_TOKEN;
  if (repetition && !all_inside(row->prompt, row->num_prompt, size)) return LLMOS_ROW_BAD_TOKEN;
  if ((repetition || counted) && !all_inside(row->generated, row->num_generated, size)) return LLMOS_ROW_BAD_TOKEN;
  memcpy(work->scores, logits, sizeof(float) * (size_t)size);
  for (int32_t i = 0; i < settings->num_biases; ++i) work->scores[settings->bias_ids[i]] += settings->biases[i];
  if (repetition) {
    memset(work->keys, 0, sizeof(uint32_t) * (size_t)((size + 31) / 32));
    penalize_repetition(work->scores, row->prompt, row->num_prompt, settings->repetition_penalty, work->keys);
    penalize_repetition(work->scores, row->generated, row->num_generated, settings->repetition_penalty, work->keys);
  }
  if (counted)
    penalize_counts(work->scores, row->generated, row->num_generated, settings->presence_penalty, settings->frequency_penalty, work->keys);
  if (row->allowed) mask_scores(work->scores, size, row->allowed);
  return LLMOS_ROW_SAMPLED;
}

/* ---- Candidates: tokens that may be drawn, by id ---- */

/* Keeps the smallest prefix, by keys, of the candidates. weights: NULL for 1 each. */
static int64_t keep_prefix(llmos_work* work, int64_t count, const float* weights, double target) {
  llmos_prefix prefix = smallest_prefix(work->keys, weights, count, target, &work->selection);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) { /* with no branch: it would be guessed wrong as often as right */
    int64_t below = work->keys[i] < prefix.last, last = work->keys[i] == prefix.last;
    work->ids[kept] = work->ids[i];
    work->kept[kept] = work->kept[i];
    kept += below | (last & (prefix.num_last > 0));
    prefix.num_last -= last;
  }
  return kept;
}

/* The k largest elements above negative infinity. The k-th largest of the groups' maxima is no larger than the k-th largest element,
 * since each of those k groups has one that is as large: groups below it hold none of the k. */
static int64_t largest_elements(const llmos_row* row, int64_t k, llmos_work* work) {
  int64_t num_groups = groups_of(row->size), count = 0;
  uint32_t last = UINT32_MAX;
  if (k < num_groups) {
    for (int64_t group = 0; group < num_groups; ++group) work->keys[group] = descending_key(row->maxima[group]);
    last = smallest_prefix(work->keys, NULL, num_groups, (double)k, &work->selection).last;
  }
  uint32_t lowest = descending_key(-__builtin_inff());
  last = last < lowest ? last : lowest - 1;
  for (int64_t group = 0; group < num_groups; ++group) {
    if (descending_key(row->maxima[group]) > last) continue;
    int64_t end = (group + 1) * GROUP < row->size ? (group + 1) * GROUP : row->size;
    for (int64_t i = group * GROUP; i < end; ++i) {
      uint32_t key = descending_key(row->values[i]);
      work->keys[count] = key;
      work->ids[count] = (int32_t)i;
      count += key <= last;
    }
  }
  return count <= k ? count : keep_prefix(work, count, NULL, (double)k);
}

/* Those of a weight that is positive and reaches the least. */
static int64_t heavy_elements(const llmos_row* row, float least, llmos_work* work) {
  int64_t count = 0;
  for (int64_t group = 0; group < groups_of(row->size); ++group) {
    if (work->sums[group] < least) continue;
    int64_t end = (group + 1) * GROUP < row->size ? (group + 1) * GROUP : row->size;
    for (int64_t i = group * GROUP; i < end; ++i) {
      float weight = work->weights[i];
      work->ids[count] = (int32_t)i;
      work->kept[count] = weight;
      count += (weight >= least) & (weight > 0);
    }
  }
  return count;
}

/* The sum of all, or weighted; four running sums, so that one addition needn't wait for the one before. */
static double sum_of(const float* values, const float* weights, int64_t count) {
  double lanes[4] = {0}, rest = 0;
  int64_t whole = count / 4 * 4;
  for (int64_t i = 0; i < whole; i += 4) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += weights ? (double)values[i + lane] * weights[i + lane] : values[i + lane];
  }
  for (int64_t i = whole; i < count; ++i) rest += weights ? (double)values[i] * weights[i] : values[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest;
}

static int64_t keep_likeliest(const llmos_row* row, double target, int64_t count, llmos_work* work) {
  for (int64_t i = 0; i < count; ++i) work->keys[i] = descending_key(row->values[work->ids[i]]);
  return keep_prefix(work, count, work->kept, target);
}

/* What the logits of candidates are below the largest, divided by the temperature. */
static void differences(const llmos_row* row, const int32_t* ids, int64_t count, float scale, float* results) {
  for (int64_t i = 0; i < count; ++i) results[i] = (row->values[ids[i]] - row->largest) * scale;
}

/* -log p of a candidate is log(sum of weights) - d, with d its difference; the entropy is the mean of that. So the distance between the two
 * is the distance of d from its mean. */
static int64_t keep_typical(const llmos_row* row, float scale, double mean, double target, int64_t count, llmos_work* work) {
  float* found = work->selection.weights; /* free until the selection */
  differences(row, work->ids, count, scale, found);
  for (int64_t i = 0; i < count; ++i) {
    float distance = (float)__builtin_fabs(found[i] - mean);
    memcpy(&work->keys[i], &distance, sizeof distance); /* of numbers that are not negative, the bits are in order */
  }
  return keep_prefix(work, count, work->kept, target);
}

/* All lighter than this weigh (1 - mass) / 2 of the total at most: the others have that mass without them. */
static double needless_weight(double mass, double total, int64_t size) { return (1 - mass) / 2 * total / (double)size; }

/* The same for typical tokens, if those lighter are also farther from the mean than all others: than the likeliest, whose difference is 0, and than
 * those of just this weight. */
static double needless_typical(double mass, double mean, double total, int64_t size) {
  double least = needless_weight(mass, total, size);
  return least > 0x1p-100 && mean - logarithm(least) >= -mean ? least : 0;
}

static int64_t keep_at_least(float least, int64_t count, llmos_work* work) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    float weight = work->kept[i];
    work->ids[kept] = work->ids[i];
    work->kept[kept] = weight;
    kept += (weight >= least) & (weight > 0);
  }
  return kept;
}

/* ---- Draws ---- */

/* The first element at which the running sum exceeds the target, or the last of a positive weight, where rounding keeps it below. */
static int64_t first_above(const float* weights, int64_t count, double sum, double target) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += weights[i];
    if (weights[i] <= 0) continue; /* can't be drawn, whatever the rounding */
    last = i;
    if (sum > target) break;
  }
  return last;
}

static int32_t draw_of_all(const llmos_work* work, int64_t size, double target) {
  double before = 0;
  int64_t found = 0;
  for (int64_t group = 0; group < groups_of(size); ++group) {
    if (work->sums[group] == 0) continue;
    found = group;
    if (before + work->sums[group] > target) break;
    before += work->sums[group];
  }
  int64_t begin = found * GROUP, count = size - begin < GROUP ? size - begin : GROUP;
  return (int32_t)(begin + first_above(work->weights + begin, count, before, target));
}

/* Settings of a draw as its arithmetic takes them. */
typedef struct {
  double top_p, typical_p;
  float scale, min_p;
} llmos_filters;

static llmos_filters filters_of(const llmos_sampling* settings) {
  llmos_filters filters = {.top_p = settings->top_p, .typical_p = settings->typical_p};
  /* A larger scale would tell nothing apart that this one doesn't. */
  filters.scale = settings->temperature > 1e-30 ? (float)(1 / settings->temperature) : 1e30f;
  if (settings->min_p > 0) filters.min_p = (float)(settings->min_p < 1 ? settings->min_p : 1);
  return filters;
}

/* The distribution of what is left. mean: of the differences, set where typical tokens are wanted and nothing comes before. */
typedef struct {
  int64_t count;
  double total, mean;
} llmos_candidates;

static llmos_candidates candidates_of_k(const llmos_row* row, int64_t k, const llmos_filters* filters, llmos_work* work) {
  int64_t count = largest_elements(row, k, work);
  differences(row, work->ids, count, filters->scale, work->kept);
  exponentials(work->kept, count);
  count = keep_at_least(0, count, work);
  return (llmos_candidates){.count = count, .total = sum_of(work->kept, NULL, count)};
}

/* Of a row whose weights are known: without those that the filters would drop anyway. */
static llmos_candidates candidates_of_all(const llmos_row* row, double total, const llmos_filters* filters, llmos_work* work) {
  llmos_candidates found = {.total = total};
  double least = filters->min_p;
  if (filters->top_p < 1) {
    double needless = needless_weight(filters->top_p, total, row->size);
    least = needless > least ? needless : least;
  } else if (filters->min_p <= 0) {
    found.mean = row_weighted_sum(row->values, row->size, row->largest, filters->scale, work->weights) / total;
    least = needless_typical(filters->typical_p, found.mean, total, row->size);
  }
  found.count = heavy_elements(row, least < 1 ? (float)least : 1, work); /* the largest weight is 1 */
  return found;
}

static int32_t draw(const llmos_row* row, const llmos_sampling* settings, uint64_t position, llmos_work* work) {
  llmos_filters filters = filters_of(settings);
  bool cut = settings->top_k > 0 && settings->top_k < row->size, likeliest = filters.top_p < 1, likely = filters.min_p > 0;
  double number = uniform(settings->seed, position);
  llmos_candidates left;
  if (cut) {
    left = candidates_of_k(row, settings->top_k, &filters, work);
  } else {
    double total = row_weights(row->values, row->size, row->largest, filters.scale, work->weights, work->sums);
    if (!likeliest && !likely && !(filters.typical_p < 1)) return draw_of_all(work, row->size, number * total);
    left = candidates_of_all(row, total, &filters, work);
  }
  if (likeliest) left.count = keep_likeliest(row, filters.top_p * left.total, left.count, work);
  if (likely) left.count = keep_at_least(filters.min_p, left.count, work);
  if (filters.typical_p < 1) {
    if (cut || likeliest || likely) {
      differences(row, work->ids, left.count, filters.scale, work->selection.weights);
      left.total = sum_of(work->kept, NULL, left.count);
      left.mean = sum_of(work->selection.weights, work->kept, left.count) / left.total;
    }
    left.count = keep_typical(row, filters.scale, left.mean, filters.typical_p * left.total, left.count, work);
  }
  return work->ids[first_above(work->kept, left.count, 0, number * sum_of(work->kept, NULL, left.count))];
}

static int32_t first_equal(const llmos_row* row) {
  int64_t group = 0;
  while (row->maxima[group] != row->largest) ++group;
  int64_t i = group * GROUP;
  while (row->values[i] != row->largest) ++i;
  return (int32_t)i;
}

/* ---- Log probabilities ---- */

static int by_key(const void* one, const void* other) {
  uint64_t a = *(const uint64_t*)one, b = *(const uint64_t*)other;
  return (a > b) - (a < b);
}

/* pairs: in the row's weights and what follows them, which nothing needs now. */
static int32_t write_tops(const llmos_row* row, double log_sum, int64_t k, llmos_work* work, llmos_token_logprob* tops) {
  int64_t count = largest_elements(row, k, work);
  uint64_t* pairs = (uint64_t*)work->weights;
  for (int64_t i = 0; i < count; ++i) pairs[i] = (uint64_t)descending_key(row->values[work->ids[i]]) << 32 | (uint32_t)work->ids[i];
  qsort(pairs, (size_t)count, sizeof *pairs, by_key);
  for (int64_t i = 0; i < count; ++i) {
    int32_t id = (int32_t)(uint32_t)pairs[i];
    tops[i] = (llmos_token_logprob){.logprob = row->values[id] - log_sum, .token = id};
  }
  return (int32_t)count;
}

/* ---- Rows ---- */

static int32_t status_of(float largest) {
  if (!(largest < __builtin_inff())) return LLMOS_ROW_NOT_FINITE; /* NaN too */
  return largest == -__builtin_inff() ? LLMOS_ROW_NO_TOKEN : LLMOS_ROW_SAMPLED;
}

static int32_t choose(llmos_row row, const llmos_sampling* settings, const llmos_sampling_row* context, llmos_work* work, int32_t* token) {
  if (changes_logits(settings, context)) {
    int32_t status = change_logits(row.values, row.size, settings, context, work);
    if (status) return status;
    row.values = work->scores;
    row.largest = row_max(row.values, row.size, work->maxima);
    if ((status = status_of(row.largest))) return status;
  }
  *token = settings->temperature > 0 ? draw(&row, settings, context->position, work) : first_equal(&row);
  return LLMOS_ROW_SAMPLED;
}

static void sample_row(const llmos_sampling_job* job, int64_t index, llmos_work* work) {
  const llmos_sampling* settings = job->settings + index;
  const llmos_sampling_row* context = job->rows + index;
  llmos_sampled* result = job->results + index;
  *result = (llmos_sampled){0};
  llmos_row row = {job->logits + index * job->vocab_size, work->maxima, 0, job->vocab_size};
  row.largest = row_max(row.values, row.size, work->maxima);
  result->status = status_of(row.largest);
  if (result->status) return;
  double log_sum = 0;
  if (settings->num_logprobs >= 0) {
    log_sum = row.largest + logarithm(row_weights(row.values, row.size, row.largest, 1, NULL, NULL));
    int32_t num_top = settings->num_logprobs < job->max_top ? settings->num_logprobs : job->max_top;
    if (num_top > 0) result->num_top = write_tops(&row, log_sum, num_top, work, job->tops + index * job->max_top);
  }
  result->status = choose(row, settings, context, work, &result->token);
  if (settings->num_logprobs >= 0 && result->status == LLMOS_ROW_SAMPLED) result->logprob = row.values[result->token] - log_sum;
}

static int32_t sample_rows(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)dims;
  const llmos_sampling_job* job = buffers[0];
  llmos_work work;
  lay_out(&work, scratch, job->vocab_size);
  uint32_t mode = set_float_mode(0x1F80); /* the caller's must not reach results */
  for (int64_t row = begin; row < end; ++row) sample_row(job, row, &work);
  set_float_mode(mode);
  return LLMOS_OK;
}

int32_t llmos_sample(const float* logits, int64_t num_rows, int64_t vocab_size, const llmos_sampling* settings, const llmos_sampling_row* rows,
                     llmos_sampled* results, llmos_token_logprob* tops, int32_t max_top) {
  if (num_rows < 0 || vocab_size < 1 || vocab_size > INT32_MAX - GROUP || max_top < 0 || (max_top && !tops))
    return fail(LLMOS_BAD_ARGUMENTS, "rows, vocabulary and places for logprobs must not be negative, and the vocabulary not empty");
  llmos_sampling_job job = {logits, settings, rows, results, tops, vocab_size, max_top};
  void* buffers[] = {&job};
  int32_t code = pool_launch(sample_rows, buffers, NULL, num_rows, work_bytes(vocab_size));
  return code ? fail(code, "out of memory for the sampling of %lld rows", (long long)num_rows) : LLMOS_OK;
}
