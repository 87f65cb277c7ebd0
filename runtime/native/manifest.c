/* manifest.json as records. What only people and Python read (producer, plan, passes, metadata, assets) is left where it is. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>

/* An object or array of the document and where it stands, for messages; `failed` keeps the first error through many reads. */
typedef struct {
  const llmos_json* document;
  llmos_zone* zone;
  bool failed;
} llmos_manifest_reader;

static bool refuse(llmos_manifest_reader* in, const char* where, const char* what) {
  if (!in->failed) fail(LLMOS_ERROR_ARTIFACT, "manifest: %s: %s", where, what);
  in->failed = true;
  return false;
}

static void* allocate(llmos_manifest_reader* in, size_t count, size_t size) {
  void* memory = zone_alloc(in->zone, count ? count : 1, size);
  if (!memory) refuse(in, "memory", "out of memory");
  return memory;
}

static const llmos_json_node* node_at(const llmos_manifest_reader* in, size_t index) { return in->document->nodes + index; }
static size_t index_of(const llmos_manifest_reader* in, const llmos_json_node* node) { return (size_t)(node - in->document->nodes); }

/* The value of a key, or NULL. A key that appears twice has none. */
static const llmos_json_node* find(const llmos_manifest_reader* in, const llmos_json_node* object, const char* key) {
  const llmos_json_node* found = NULL;
  size_t at = index_of(in, object) + 1;
  for (uint32_t i = 0; object->type == JSON_OBJECT && i < object->count; ++i) {
    const llmos_json_node* value = node_at(in, at + 1);
    if (strcmp(node_at(in, at)->string, key) == 0) {
      if (found) return NULL;
      found = value;
    }
    at = value->next;
  }
  return found;
}

static const llmos_json_node* field(llmos_manifest_reader* in, const llmos_json_node* object, const char* key, llmos_json_type type) {
  static const char* const kinds[] = {"null", "a bool", "an integer", "a number", "a string", "an array", "an object"};
  static const llmos_json_node none[] = {[JSON_BOOL] = {.type = JSON_BOOL},
                                   [JSON_INTEGER] = {.type = JSON_INTEGER},
                                   [JSON_STRING] = {.type = JSON_STRING, .string = ""},
                                   [JSON_ARRAY] = {.type = JSON_ARRAY},
                                   [JSON_OBJECT] = {.type = JSON_OBJECT}};
  const llmos_json_node* found = find(in, object, key);
  if (found && found->type == type) return found;
  char what[64];
  snprintf(what, sizeof what, "there must be %s, once", kinds[type]);
  refuse(in, key, what);
  return none + type;
}

static int64_t integer(llmos_manifest_reader* in, const llmos_json_node* object, const char* key) {
  return field(in, object, key, JSON_INTEGER)->integer;
}

static const char* string(llmos_manifest_reader* in, const llmos_json_node* object, const char* key) {
  const char* text = field(in, object, key, JSON_STRING)->string;
  const char* copy = zone_string(in->zone, text, strlen(text));
  if (!copy) refuse(in, key, "out of memory");
  return copy ? copy : "";
}

/* Calls parse(in, item, records + i) for each item of an array. */
static void* records(llmos_manifest_reader* in, const llmos_json_node* object, const char* key, size_t size, int32_t limit, int32_t* count,
                     void (*parse)(llmos_manifest_reader*, const llmos_json_node*, void*)) {
  const llmos_json_node* array = field(in, object, key, JSON_ARRAY);
  if (array->count > (uint32_t)limit) refuse(in, key, "too many");
  *count = in->failed ? 0 : (int32_t)array->count;
  char* result = allocate(in, (size_t)*count, size);
  size_t at = in->failed ? 0 : index_of(in, array) + 1;
  for (int32_t i = 0; i < *count && !in->failed; ++i) {
    parse(in, node_at(in, at), result + (size_t)i * size);
    at = node_at(in, at)->next;
  }
  return result;
}

static void parse_string(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  if (item->type != JSON_STRING) {
    refuse(in, "a list of strings", "there is something else in it");
    return;
  }
  const char* copy = zone_string(in->zone, item->string, strlen(item->string));
  if (!copy) refuse(in, "memory", "out of memory");
  *(const char**)out = copy;
}

/* ---- Parts ---- */

static void parse_symbol(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_symbol* result = out;
  *result = (llmos_symbol){string(in, item, "name"), integer(in, item, "min"), integer(in, item, "max")};
  if (result->min < 0 || result->max < result->min) refuse(in, result->name, "its min and max are no range of sizes");
}

static void parse_dim(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_dim* result = out;
  *result = (llmos_dim){.size = -1, .symbol = -1};
  if (item->type == JSON_INTEGER && item->integer >= 0) {
    result->size = item->integer;
  } else if (item->type == JSON_STRING) {
    parse_string(in, item, &result->expression);
  } else {
    refuse(in, "shape", "a dim must be a size or the name of a symbol");
  }
}

static void parse_tensor(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_tensor_spec* result = out;
  llmos_tensor_info* info = &result->info;
  info->name = string(in, item, "name");
  const char* dtype = string(in, item, "dtype");
  if (!in->failed && !dtype_parse(dtype, &info->dtype)) refuse(in, dtype, "unknown dtype");
  result->dims = records(in, item, "shape", sizeof(llmos_dim), MAX_NDIM, &info->ndim, parse_dim);
  int64_t* shape = allocate(in, (size_t)info->ndim, sizeof *shape);
  for (int32_t i = 0; i < info->ndim && shape; ++i) shape[i] = result->dims[i].size;
  info->shape = shape;
}

static void parse_input(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  parse_tensor(in, item, out);
  ((llmos_tensor_spec*)out)->updated = find(in, item, "updated") && field(in, item, "updated", JSON_BOOL)->integer;
}

enum { MAX_TENSORS = 1 << 16, MAX_COUNT = 1 << 22 };

static void parse_entry(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_entry_spec* result = out;
  result->name = string(in, item, "name");
  result->symbol = string(in, item, "symbol");
  result->shapes = string(in, item, "shapes");
  result->inputs = records(in, item, "inputs", sizeof(llmos_tensor_spec), MAX_TENSORS, &result->num_inputs, parse_input);
  result->outputs = records(in, item, "outputs", sizeof(llmos_tensor_spec), MAX_TENSORS, &result->num_outputs, parse_tensor);
  const llmos_json_node* guards = find(in, item, "guards");
  if (!guards) return;
  result->guards = string(in, guards, "symbol");
  result->conditions = records(in, guards, "conditions", sizeof(char*), MAX_TENSORS, &result->num_conditions, parse_string);
}

static void parse_weight(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_weight* result = out;
  int64_t offset = integer(in, item, "offset"), num_bytes = integer(in, item, "num_bytes");
  if (offset < 0 || offset % ALIGNMENT || num_bytes < 0) refuse(in, "weights", "an offset or num_bytes is not valid");
  *result = (llmos_weight){string(in, item, "name"), (uint64_t)offset, (uint64_t)num_bytes};
}

static void parse_code(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  llmos_code* result = out;
  result->target = string(in, item, "target");
  result->arch = string(in, item, "arch");
  result->member = string(in, item, "member");
  result->features = records(in, item, "features", sizeof(char*), 256, &result->num_features, parse_string);
  const llmos_json_node* modules = find(in, item, "modules");
  if (!modules) return;
  result->ptx = string(in, modules, "ptx");
  result->cubin = find(in, modules, "cubin") ? string(in, modules, "cubin") : NULL;
}

static void parse_kernel(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  *(const char**)out = string(in, item, "name");
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

static void parse_digest(llmos_manifest_reader* in, const llmos_json_node* item, void* out) {
  uint8_t* digest = out;
  bool ok = item->type == JSON_STRING && strlen(item->string) == 64;
  for (int i = 0; i < 32 && ok; ++i) {
    int high = hex_digit(item->string[2 * i]), low = hex_digit(item->string[2 * i + 1]);
    ok = high >= 0 && low >= 0;
    digest[i] = (uint8_t)(high * 16 + low);
  }
  if (!ok) refuse(in, "members", "a sha256 is not 64 hex digits");
}

static void parse_members(llmos_manifest_reader* in, const llmos_json_node* root, llmos_manifest* result) {
  const llmos_json_node* object = field(in, root, "members", JSON_OBJECT);
  if (object->count > 4096) refuse(in, "members", "too many");
  if (in->failed) return;
  llmos_listed_member* members = allocate(in, object->count, sizeof *members);
  size_t at = index_of(in, object) + 1;
  for (uint32_t i = 0; i < object->count && !in->failed; ++i) {
    const llmos_json_node* value = node_at(in, at + 1);
    int32_t num_chunks;
    int64_t num_bytes = integer(in, value, "num_bytes");
    members[i].first_chunk = i ? members[i - 1].first_chunk + members[i - 1].num_chunks : 0;
    parse_string(in, node_at(in, at), (void*)&members[i].name);
    members[i].sha256 = records(in, value, "sha256", 32, MAX_COUNT, &num_chunks, parse_digest);
    members[i].num_bytes = (uint64_t)num_bytes;
    members[i].num_chunks = num_chunks;
    if (!in->failed && (num_bytes < 0 || num_bytes / CHUNK_BYTES + (num_bytes % CHUNK_BYTES != 0) != num_chunks)) {
      refuse(in, members[i].name, "there must be one sha256 per MiB");
    }
    for (uint32_t j = 0; j < i && !in->failed; ++j) {
      if (strcmp(members[i].name, members[j].name) == 0) refuse(in, members[i].name, "it is listed twice");
    }
    at = value->next;
  }
  result->members = members;
  result->num_members = (int32_t)object->count;
}

/* ---- What the parts must agree on ---- */

static void resolve_dim(llmos_manifest_reader* in, const llmos_manifest* manifest, llmos_dim* dim) {
  int64_t smallest[MAX_SYMBOLS], value;
  if (!dim->expression) return;
  for (int32_t i = 0; i < manifest->num_symbols; ++i) {
    smallest[i] = manifest->symbols[i].max;
    if (strcmp(manifest->symbols[i].name, dim->expression) == 0) dim->symbol = i;
  }
  if (dim->symbol >= 0) return;
  bool ok = evaluate(dim->expression, manifest->symbols, manifest->num_symbols, smallest, &value);
  for (int32_t i = 0; i < manifest->num_symbols; ++i) smallest[i] = manifest->symbols[i].min;
  ok = ok || evaluate(dim->expression, manifest->symbols, manifest->num_symbols, smallest, &value);
  if (!ok) refuse(in, dim->expression, "an input's dim must be a size, a symbol or an expression of symbols");
}

/* The shapes function must be given every symbol, so every symbol must stand alone in some dim of the entry's inputs; one that
 * belongs to other entries only is passed as its smallest size. */
static void resolve_entries(llmos_manifest_reader* in, const llmos_manifest* manifest) {
  for (int32_t e = 0; e < manifest->num_entries; ++e) {
    const llmos_entry_spec* entry = manifest->entries + e;
    for (int32_t i = 0; i < entry->num_inputs; ++i) {
      for (int32_t d = 0; d < entry->inputs[i].info.ndim; ++d) resolve_dim(in, manifest, (llmos_dim*)entry->inputs[i].dims + d);
    }
  }
}

static bool check_format(llmos_manifest_reader* in, const llmos_json_node* root) {
  int64_t format = integer(in, root, "format");
  if (in->failed || (format >= OLDEST_FORMAT && format <= FORMAT)) return !in->failed;
  const char* advice = format > FORMAT ? "install a newer llmos" : "compile the model again";
  fail(LLMOS_ERROR_ARTIFACT, "it has format %lld and this llmos reads %d to %d: %s", (long long)format, OLDEST_FORMAT, FORMAT, advice);
  return false;
}

static bool parse_root(llmos_manifest_reader* in, const llmos_json_node* root, llmos_manifest* result) {
  result->name = string(in, root, "name");
  result->symbols = records(in, root, "symbols", sizeof(llmos_symbol), MAX_SYMBOLS, &result->num_symbols, parse_symbol);
  result->entries = records(in, root, "entries", sizeof(llmos_entry_spec), 4096, &result->num_entries, parse_entry);
  result->weights = records(in, root, "weights", sizeof(llmos_weight), MAX_COUNT, &result->num_weights, parse_weight);
  result->code = records(in, root, "code", sizeof(llmos_code), 256, &result->num_code, parse_code);
  result->kernels = records(in, root, "kernels", sizeof(char*), MAX_COUNT, &result->num_kernels, parse_kernel);
  parse_members(in, root, result);
  if (!in->failed) resolve_entries(in, result);
  return !in->failed;
}

int32_t manifest_parse(const char* text, size_t size, llmos_zone* zone, llmos_manifest* result) {
  llmos_json document;
  int32_t code = json_parse(text, size, &document);
  if (code) return code;
  llmos_manifest_reader in = {&document, zone, false};
  bool ok = check_format(&in, document.nodes) && parse_root(&in, document.nodes, result);
  json_free(&document);
  return ok ? LLMOS_OK : LLMOS_ERROR_ARTIFACT;
}

/* ---- Dtypes ---- */

static const struct {
  const char* name;
  DLDataType dtype;
} DTYPES[] = {
    {"bool", {6, 8, 1}},    {"int8", {0, 8, 1}},     {"int16", {0, 16, 1}},    {"int32", {0, 32, 1}},   {"int64", {0, 64, 1}},
    {"uint8", {1, 8, 1}},   {"uint16", {1, 16, 1}},  {"uint32", {1, 32, 1}},   {"uint64", {1, 64, 1}},  {"float16", {2, 16, 1}},
    {"float32", {2, 32, 1}}, {"float64", {2, 64, 1}}, {"bfloat16", {4, 16, 1}}, {"complex64", {5, 64, 1}},
    {"complex128", {5, 128, 1}},
};
enum { NUM_DTYPES = sizeof DTYPES / sizeof *DTYPES };

bool dtype_parse(const char* name, DLDataType* dtype) {
  for (int i = 0; i < NUM_DTYPES; ++i) {
    if (strcmp(DTYPES[i].name, name) == 0) {
      *dtype = DTYPES[i].dtype;
      return true;
    }
  }
  return false;
}

const char* dtype_name(DLDataType dtype, char buffer[32]) {
  for (int i = 0; i < NUM_DTYPES; ++i) {
    if (memcmp(&DTYPES[i].dtype, &dtype, sizeof dtype) == 0) return DTYPES[i].name;
  }
  snprintf(buffer, 32, "DLPack type (%d, %d, %d)", dtype.code, dtype.bits, dtype.lanes);
  return buffer;
}
