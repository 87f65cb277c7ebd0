/* Integer expressions of symbols, such as "2*tokens + 1", as they appear in the dims of inputs.
 *
 *   sum = product (("+" | "-") product)*      product = factor ("*" factor)*      factor = number | symbol | "(" sum ")"
 * Overflow makes the whole invalid.
 */
#include "core.h"

typedef struct {
  const char* text;
  const symbol* symbols;
  int32_t num_symbols;
  const int64_t* values;
  int depth;
} reader;

static bool sum(reader* in, int64_t* result);

static bool accept(reader* in, char c) {
  while (*in->text == ' ') ++in->text;
  if (*in->text != c) return false;
  if (c) ++in->text;
  return true;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool number(reader* in, int64_t* result) {
  for (*result = 0; is_digit(*in->text); ++in->text) {
    if (__builtin_mul_overflow(*result, 10, result) || __builtin_add_overflow(*result, *in->text - '0', result)) return false;
  }
  return true;
}

static bool named(reader* in, int64_t* result) {
  const char* start = in->text;
  while (is_letter(*in->text) || is_digit(*in->text)) ++in->text;
  size_t length = (size_t)(in->text - start);
  for (int32_t i = 0; i < in->num_symbols; ++i) {
    *result = in->values[i];
    if (strlen(in->symbols[i].name) == length && memcmp(in->symbols[i].name, start, length) == 0) return true;
  }
  return false;
}

static bool factor(reader* in, int64_t* result) {
  if (accept(in, '(')) {
    bool ok = ++in->depth < 64 && sum(in, result) && accept(in, ')');
    --in->depth;
    return ok;
  }
  return is_digit(*in->text) ? number(in, result) : is_letter(*in->text) && named(in, result);
}

static bool product(reader* in, int64_t* result) {
  int64_t other;
  if (!factor(in, result)) return false;
  while (accept(in, '*')) {
    if (!factor(in, &other) || __builtin_mul_overflow(*result, other, result)) return false;
  }
  return true;
}

static bool sum(reader* in, int64_t* result) {
  int64_t other;
  if (!product(in, result)) return false;
  for (;;) {
    bool plus = accept(in, '+'), minus = !plus && accept(in, '-');
    if (!plus && !minus) return true;
    if (!product(in, &other)) return false;
    if (plus ? __builtin_add_overflow(*result, other, result) : __builtin_sub_overflow(*result, other, result)) return false;
  }
}

bool evaluate(const char* text, const symbol* symbols, int32_t num_symbols, const int64_t* values, int64_t* result) {
  reader in = {text, symbols, num_symbols, values, 0};
  return sum(&in, result) && accept(&in, 0);
}
