/* Integer expressions of symbols, such as "2*tokens + 1", as they appear in the dims of inputs.
 *
 *   sum = product (("+" | "-") product)*      product = factor (("*" | "//" | "%") factor)*
 *   factor = number | symbol | "-" factor | "(" sum ")" | ("min" | "max") "(" sum ("," sum)* ")"
 * Division and remainder round down, as Python's do. Overflow and division by zero make the whole invalid.
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

static bool accept(reader* in, const char* token) {
  while (*in->text == ' ') ++in->text;
  size_t length = strlen(token);
  if (strncmp(in->text, token, length) != 0) return false;
  in->text += length;
  return true;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool number(reader* in, int64_t* result) {
  *result = 0;
  for (; is_digit(*in->text); ++in->text) {
    if (__builtin_mul_overflow(*result, 10, result) || __builtin_add_overflow(*result, *in->text - '0', result)) return false;
  }
  return true;
}

static bool extremum(reader* in, bool largest, int64_t* result) {
  if (!accept(in, "(") || !sum(in, result)) return false;
  while (accept(in, ",")) {
    int64_t other;
    if (!sum(in, &other)) return false;
    if (largest ? other > *result : other < *result) *result = other;
  }
  return accept(in, ")");
}

static bool named(reader* in, int64_t* result) {
  const char* start = in->text;
  while (is_letter(*in->text) || is_digit(*in->text)) ++in->text;
  size_t length = (size_t)(in->text - start);
  if (length == 3 && memcmp(start, "min", 3) == 0) return extremum(in, false, result);
  if (length == 3 && memcmp(start, "max", 3) == 0) return extremum(in, true, result);
  for (int32_t i = 0; i < in->num_symbols; ++i) {
    const char* name = in->symbols[i].name;
    if (strlen(name) == length && memcmp(name, start, length) == 0) {
      *result = in->values[i];
      return true;
    }
  }
  return false;
}

static bool factor(reader* in, int64_t* result) {
  if (++in->depth > 64) return false;
  bool ok;
  if (accept(in, "-")) {
    ok = factor(in, result) && !__builtin_sub_overflow(0, *result, result);
  } else if (accept(in, "(")) {
    ok = sum(in, result) && accept(in, ")");
  } else {
    ok = is_digit(*in->text) ? number(in, result) : is_letter(*in->text) && named(in, result);
  }
  --in->depth;
  return ok;
}

static bool divide(int64_t a, int64_t b, bool remainder, int64_t* result) {
  if (b == 0 || (a == INT64_MIN && b == -1)) return false;
  int64_t quotient = a / b, rest = a % b;
  bool down = rest != 0 && (rest < 0) != (b < 0);
  *result = remainder ? rest + (down ? b : 0) : quotient - down;
  return true;
}

static bool product(reader* in, int64_t* result) {
  if (!factor(in, result)) return false;
  for (;;) {
    int64_t other;
    if (accept(in, "*")) {
      if (!factor(in, &other) || __builtin_mul_overflow(*result, other, result)) return false;
    } else if (accept(in, "//")) {
      if (!factor(in, &other) || !divide(*result, other, false, result)) return false;
    } else if (accept(in, "%")) {
      if (!factor(in, &other) || !divide(*result, other, true, result)) return false;
    } else {
      return true;
    }
  }
}

static bool sum(reader* in, int64_t* result) {
  if (!product(in, result)) return false;
  for (;;) {
    int64_t other;
    if (accept(in, "+")) {
      if (!product(in, &other) || __builtin_add_overflow(*result, other, result)) return false;
    } else if (accept(in, "-")) {
      if (!product(in, &other) || __builtin_sub_overflow(*result, other, result)) return false;
    } else {
      return true;
    }
  }
}

bool evaluate(const char* text, const symbol* symbols, int32_t num_symbols, const int64_t* values, int64_t* result) {
  reader in = {text, symbols, num_symbols, values, 0};
  return sum(&in, result) && accept(&in, "") && *in.text == 0;
}
