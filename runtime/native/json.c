/* A strict JSON reader (RFC 8259) for untrusted bytes: nesting is limited, strings hold no NUL. Bytes beyond ASCII are passed on. */
#include "core.h"

#include <stdlib.h>

enum { MAX_DEPTH = 64, MAX_NODES = 1 << 22 };

typedef struct {
  const char *at, *end;
  llmos_json* out;
  size_t capacity;
  char* strings; /* where the next one goes; all of them fit in the size of the text */
} llmos_json_reader;

static bool value(llmos_json_reader* in, int depth);

static void skip_space(llmos_json_reader* in) {
  while (in->at < in->end && (*in->at == ' ' || *in->at == '\n' || *in->at == '\t' || *in->at == '\r')) ++in->at;
}

static bool accept(llmos_json_reader* in, char c) {
  skip_space(in);
  if (in->at == in->end || *in->at != c) return false;
  ++in->at;
  return true;
}

static bool accept_word(llmos_json_reader* in, const char* word) {
  size_t length = strlen(word);
  if ((size_t)(in->end - in->at) < length || memcmp(in->at, word, length) != 0) return false;
  in->at += length;
  return true;
}

static bool new_node(llmos_json_reader* in, llmos_json_type type, size_t* index) {
  llmos_json* out = in->out;
  if (out->num_nodes == in->capacity) {
    size_t capacity = in->capacity ? in->capacity * 2 : 256;
    llmos_json_node* nodes = capacity > MAX_NODES ? NULL : realloc(out->nodes, capacity * sizeof *nodes);
    if (!nodes) return false;
    out->nodes = nodes;
    in->capacity = capacity;
  }
  *index = out->num_nodes++;
  out->nodes[*index] = (llmos_json_node){.type = type, .next = (uint32_t)out->num_nodes};
  return true;
}

/* ---- Strings ---- */

static bool hex4(llmos_json_reader* in, uint32_t* code) {
  *code = 0;
  if (in->end - in->at < 4) return false;
  for (int i = 0; i < 4; ++i) {
    char c = *in->at++;
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return false;
    *code = *code << 4 | (uint32_t)digit;
  }
  return true;
}

static void put_utf8(llmos_json_reader* in, uint32_t code) {
  if (code < 0x80) {
    *in->strings++ = (char)code;
  } else if (code < 0x800) {
    *in->strings++ = (char)(0xC0 | code >> 6);
    *in->strings++ = (char)(0x80 | (code & 0x3F));
  } else {
    if (code >= 0x10000) *in->strings++ = (char)(0xF0 | code >> 18);
    *in->strings++ = (char)(code >= 0x10000 ? 0x80 | (code >> 12 & 0x3F) : 0xE0 | code >> 12);
    *in->strings++ = (char)(0x80 | (code >> 6 & 0x3F));
    *in->strings++ = (char)(0x80 | (code & 0x3F));
  }
}

static bool unicode_escape(llmos_json_reader* in) {
  uint32_t code, low;
  if (!hex4(in, &code) || code == 0 || (code >= 0xDC00 && code < 0xE000)) return false;
  if (code >= 0xD800 && code < 0xDC00) {
    if (!accept_word(in, "\\u") || !hex4(in, &low) || low < 0xDC00 || low >= 0xE000) return false;
    code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
  }
  put_utf8(in, code);
  return true;
}

static bool escape(llmos_json_reader* in) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  if (in->at == in->end) return false;
  char c = *in->at++;
  if (c == 'u') return unicode_escape(in);
  const char* found = c ? strchr(from, c) : NULL;
  if (!found) return false;
  *in->strings++ = to[found - from];
  return true;
}

static bool string(llmos_json_reader* in) {
  size_t index;
  if (!accept(in, '"') || !new_node(in, JSON_STRING, &index)) return false;
  in->out->nodes[index].string = in->strings;
  while (in->at < in->end && *in->at != '"') {
    uint8_t c = (uint8_t)*in->at;
    if (c < 0x20) return false;
    if (c == '\\') {
      ++in->at;
      if (!escape(in)) return false;
    } else {
      *in->strings++ = *in->at++;
    }
  }
  *in->strings++ = 0;
  return accept(in, '"');
}

/* ---- Numbers ---- */

static bool digits(llmos_json_reader* in) {
  const char* start = in->at;
  while (in->at < in->end && *in->at >= '0' && *in->at <= '9') ++in->at;
  return in->at > start;
}

static bool number(llmos_json_reader* in) {
  size_t index;
  if (!new_node(in, JSON_INTEGER, &index)) return false;
  llmos_json_node* node = &in->out->nodes[index];
  bool negative = accept(in, '-');
  const char* start = in->at;
  if (!digits(in) || (*start == '0' && in->at - start > 1)) return false;
  for (const char* c = start; c < in->at && node->type == JSON_INTEGER; ++c) {
    int digit = negative ? '0' - *c : *c - '0';
    if (__builtin_mul_overflow(node->integer, 10, &node->integer) || __builtin_add_overflow(node->integer, digit, &node->integer)) {
      node->type = JSON_REAL;
    }
  }
  if (in->at < in->end && *in->at == '.') {
    ++in->at;
    node->type = JSON_REAL;
    if (!digits(in)) return false;
  }
  if (in->at < in->end && (*in->at == 'e' || *in->at == 'E')) {
    ++in->at;
    node->type = JSON_REAL;
    if (in->at < in->end && (*in->at == '+' || *in->at == '-')) ++in->at;
    if (!digits(in)) return false;
  }
  return true;
}

/* ---- Values ---- */

static bool container(llmos_json_reader* in, llmos_json_type type, int depth) {
  size_t index;
  char close = type == JSON_OBJECT ? '}' : ']';
  if (depth >= MAX_DEPTH || !new_node(in, type, &index)) return false;
  ++in->at;
  if (!accept(in, close)) {
    do {
      if (type == JSON_OBJECT && (!string(in) || !accept(in, ':'))) return false;
      if (!value(in, depth + 1)) return false;
      ++in->out->nodes[index].count;
    } while (accept(in, ','));
    if (!accept(in, close)) return false;
  }
  in->out->nodes[index].next = (uint32_t)in->out->num_nodes;
  return true;
}

static bool value(llmos_json_reader* in, int depth) {
  size_t index;
  skip_space(in);
  if (in->at == in->end) return false;
  switch (*in->at) {
    case '{': return container(in, JSON_OBJECT, depth);
    case '[': return container(in, JSON_ARRAY, depth);
    case '"': return string(in);
    case 't':
      if (!accept_word(in, "true") || !new_node(in, JSON_BOOL, &index)) return false;
      in->out->nodes[index].integer = 1;
      return true;
    case 'f': return accept_word(in, "false") && new_node(in, JSON_BOOL, &index);
    case 'n': return accept_word(in, "null") && new_node(in, JSON_NULL, &index);
    default: return number(in);
  }
}

int32_t json_parse(const char* text, size_t size, llmos_json* document) {
  *document = (llmos_json){NULL, 0, malloc(size + 1)};
  llmos_json_reader in = {text, text + size, document, 0, document->strings};
  bool ok = document->strings && value(&in, 0);
  if (ok) skip_space(&in);
  if (ok && in.at == in.end) return LLMOS_OK;
  long long offset = in.at - text;
  json_free(document);
  return fail(LLMOS_ERROR_ARTIFACT, "manifest: not valid JSON, or too large, at byte %lld", offset);
}

void json_free(llmos_json* document) {
  free(document->nodes);
  free(document->strings);
  *document = (llmos_json){NULL, 0, NULL};
}
