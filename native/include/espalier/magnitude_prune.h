/*
 * magnitude_prune: keep or zero each weight of a list of tensors by its magnitude.
 *
 * A weight is pruned where its magnitude is among the smallest: below a threshold, or as one of exactly k. Ties go to
 * the lowest flat index in list order; a NaN is larger than every number and equal to every other NaN. A pruned weight
 * becomes +0 and its mask bit 0; every other weight keeps its bits. Results are the same on every instruction set and
 * for every number of threads.
 *
 * With an earlier mask, only what it keeps takes part, and what it prunes stays pruned.
 *
 * Scratch memory: at most 1 MiB + 2 % of the weights' bytes + 64 bytes a tensor. Weights must not change meanwhile.
 */
#ifndef ESPALIER_MAGNITUDE_PRUNE_H
#define ESPALIER_MAGNITUDE_PRUNE_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_PRUNE_THRESHOLD 0 /* |w| < threshold */
#define ESP_PRUNE_AMOUNT 1    /* k = amount * (weights that remain), rounded half to even */
#define ESP_PRUNE_COUNT 2     /* k = count */
#define ESP_PRUNE_SPARSITY 3  /* k = amount * (all weights), rounded half to even, less those pruned already; 0 if negative */
#define ESP_PRUNE_PATTERN 4   /* all but the `keep` largest of each `group` consecutive along the reduction axis */

#define ESP_PRUNE_GLOBAL 0 /* k of the whole list */
#define ESP_PRUNE_TENSOR 1 /* k of each tensor */

#define ESP_PRUNE_GROUP_MAX 64

/* A tensor, or a piece of one (from a multiple of 8 elements on, where masks are given). */
typedef struct esp_prune_tensor {
  const void* weights;    /* n elements of dtype */
  void* out;              /* n elements of dtype: weights itself, other memory, or NULL: not written */
  const uint8_t* mask_in; /* bits of the earlier mask, or NULL: all kept */
  uint8_t* mask_out;      /* bits of the new mask: mask_in itself, other memory, or NULL: not written */
  int64_t n;              /* >= 0 */
  int64_t axis;           /* PATTERN: size of the reduction axis, a multiple of `group` */
  int64_t inner;          /* PATTERN: elements between neighbours along it (1: the last axis); axis * inner divides n */
  esp_dtype dtype;
} esp_prune_tensor;

/* What to prune; fields that the kind does not name are ignored. */
typedef struct esp_prune_rule {
  int32_t kind;    /* ESP_PRUNE_THRESHOLD ... */
  int32_t scope;   /* AMOUNT, COUNT, SPARSITY: ESP_PRUNE_GLOBAL or ESP_PRUNE_TENSOR */
  double amount;   /* AMOUNT, SPARSITY: 0 to 1 */
  int64_t count;   /* COUNT: 0 to what remains */
  float threshold; /* THRESHOLD: >= 0 */
  int32_t keep;    /* PATTERN: 1 to group */
  int32_t group;   /* PATTERN: 1 to ESP_PRUNE_GROUP_MAX */
} esp_prune_rule;

/*
 * Where a tensor is cut. The key of a weight is the bits of its magnitude as F32, 0x7f800001 for every NaN; element i is
 * pruned where key(i) < key, or key(i) == key and i < ties. For a piece that starts at element s, give ties - s.
 */
typedef struct esp_prune_cut {
  int64_t ties;
  int32_t key;
} esp_prune_cut;

typedef struct esp_prune_result {
  int64_t total;  /* weights */
  int64_t pruned; /* of them, earlier ones included; -1 from _select with THRESHOLD, which does not read the weights */
  /*
   * THRESHOLD: itself; else the k-th smallest magnitude, so that no pruned weight lies above it: 0 where k = 0, NaN
   * where a NaN had to be pruned and where there is no one threshold (ESP_PRUNE_TENSOR, PATTERN).
   */
  float threshold;
} esp_prune_result;

/*
 * Prunes a list of count >= 0 tensors. `pruned` receives the pruned weights of each tensor, earlier ones included; NULL
 * where that is not wanted. Inputs and outputs overlap only where they are the same.
 */
ESP_API esp_status esp_magnitude_prune(const esp_prune_tensor* tensors, int64_t count, const esp_prune_rule* rule,
                                       esp_prune_result* result, int64_t* pruned);

/*
 * The same in two steps, for weights that cannot be written where they are read. The first reads weights and mask_in of
 * the whole list and writes a cut for each tensor; every kind but PATTERN, which needs no first step.
 */
ESP_API esp_status esp_magnitude_prune_select(const esp_prune_tensor* tensors, int64_t count,
                                              const esp_prune_rule* rule, esp_prune_cut* cuts,
                                              esp_prune_result* result);

/* The second writes out and mask_out by the cuts: of the list, or of any pieces in any order. `pruned` as above. */
ESP_API esp_status esp_magnitude_prune_apply(const esp_prune_tensor* tensors, const esp_prune_cut* cuts, int64_t count,
                                             int64_t* pruned);

#ifdef __cplusplus
}
#endif
#endif
