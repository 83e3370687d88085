/* A delegate as vendors ship them, for tests: takes FULLY_CONNECTED in float and leaves the rest.

   The option "refuse" makes it fail to open, "fail" makes its kernel fail. Declarations are those of
   tensorflow/lite/core/c/common.h as far as they are used, in its order. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef enum { kOk = 0, kError = 1 } Status;
typedef struct { int size; int data[]; } IntArray;
typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  int type;
  void* data;
  IntArray* dims;
  struct { float scale; int32_t zero_point; } params;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  Delegate* delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct { int type; void* params; } quantization;
  void* sparsity;
  const IntArray* dims_signature;
} Tensor;

typedef struct {
  IntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  Delegate* delegate;
  bool might_have_side_effect;
} Node;

typedef struct {
  void* (*init)(Context*, const char*, size_t);
  void (*free)(Context*, void*);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* (*async_kernel)(Context*, Node*);
  uint64_t inplace_operator;
} Registration;

struct Context {
  size_t tensors_size;
  Status (*get_plan)(Context*, IntArray**);
  Tensor* tensors;
  void* impl;
  Status (*resize)(Context*, Tensor*, IntArray*);
  void (*report)(Context*, const char*, ...);
  Status (*add_tensors)(Context*, int, int*);
  Status (*get_node)(Context*, int, Node**, Registration**);
  Status (*replace)(Context*, Registration, const IntArray*, Delegate*);
};

struct Delegate {
  void* data;
  Status (*prepare)(Context*, Delegate*);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void* builder;
};

typedef struct { Delegate* delegate; IntArray *nodes, *inputs, *outputs; } Params;

enum { kFullyConnected = 9, kFloat = 1 };

/* Indices of the tensors of each node taken: input, weights, bias, output. */
typedef struct { int count; bool fail; int tensors[][4]; } Dense;

static void* init(Context* context, const char* buffer, size_t length) {
  (void)length;
  const Params* params = (const Params*)buffer;
  Dense* dense = malloc(sizeof(Dense) + params->nodes->size * sizeof(int[4]));
  dense->count = params->nodes->size;
  dense->fail = params->delegate->data != NULL;
  for (int i = 0; i < dense->count; ++i) {
    Node* node;
    Registration* registration;
    context->get_node(context, params->nodes->data[i], &node, &registration);
    memcpy(dense->tensors[i], node->inputs->data, 3 * sizeof(int));
    dense->tensors[i][3] = node->outputs->data[0];
  }
  return dense;
}

static void release(Context* context, void* dense) { (void)context; free(dense); }

static Status invoke(Context* context, Node* node) {
  const Dense* dense = node->user_data;
  if (dense->fail) {
    context->report(context, "dense delegate: unit 0 does not answer");
    return kError;
  }
  for (int i = 0; i < dense->count; ++i) {
    const int* at = dense->tensors[i];
    const Tensor* weights = &context->tensors[at[1]];
    const float *x = context->tensors[at[0]].data, *w = weights->data, *b = context->tensors[at[2]].data;
    float* y = context->tensors[at[3]].data;
    for (int o = 0; o < weights->dims->data[0]; ++o) {
      y[o] = b[o];
      for (int k = 0; k < weights->dims->data[1]; ++k) y[o] += w[o * weights->dims->data[1] + k] * x[k];
    }
  }
  return kOk;
}

static Status prepare(Context* context, Delegate* delegate) {
  IntArray* plan;
  if (context->get_plan(context, &plan) != kOk) return kError;
  IntArray* taken = malloc(sizeof(IntArray) + plan->size * sizeof(int));
  taken->size = 0;
  for (int i = 0; i < plan->size; ++i) {
    Node* node;
    Registration* registration;
    if (context->get_node(context, plan->data[i], &node, &registration) != kOk) return kError;
    if (registration->builtin_code == kFullyConnected && node->inputs->size == 3 &&
        context->tensors[node->inputs->data[1]].type == kFloat)
      taken->data[taken->size++] = plan->data[i];
  }
  Registration kernel = {.init = init, .free = release, .invoke = invoke, .custom_name = "dense", .version = 1};
  Status status = context->replace(context, kernel, taken, delegate);
  free(taken);
  return status;
}

Delegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values, size_t count,
                                        void (*report)(const char*)) {
  (void)values;
  Delegate* delegate = calloc(1, sizeof(Delegate));
  delegate->prepare = prepare;
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(keys[i], "refuse") == 0) {
      report("dense delegate: no unit found");
      free(delegate);
      return NULL;
    }
    if (strcmp(keys[i], "fail") == 0) delegate->data = delegate;
  }
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate* delegate) { free(delegate); }
