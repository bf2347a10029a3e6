/*
 * Conventions of the C ABI, shared by every header beside this one.
 *
 * - A function returns ESP_OK or the status of its failure; esp_last_error() then holds one sentence for the calling
 *   thread. Nothing is written before the arguments are found valid, unless a header says otherwise.
 * - Sizes and indices are int64_t. Pointers are raw; memory stays the caller's. Alignment to the element size is enough,
 *   64 bytes is faster.
 * - Functions may be called from any number of threads at once on disjoint outputs.
 * - Bit fields ("bits") hold one bit an element, least significant bit first, (n + 7) / 8 bytes for n elements;
 *   1 = keep (masks) or pass (gates). Unused high bits of the last byte are written as 0 and ignored when read.
 */
#ifndef ESPALIER_COMMON_H
#define ESPALIER_COMMON_H

#include <stdint.h>

#ifndef ESP_API
#define ESP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t esp_status;
#define ESP_OK 0
#define ESP_INVALID_ARGUMENT 1 /* an argument is outside what the header allows */
#define ESP_UNSUPPORTED 2      /* valid, but this build or this machine cannot do it */
#define ESP_OUT_OF_MEMORY 3
#define ESP_NON_FINITE 4 /* a NaN or infinity where a finite value is needed */
#define ESP_DEVICE_ERROR 5
#define ESP_DEVICE_LOST 6 /* the CUDA context is dead; only a new process helps */

/* Element types of float storage. Arithmetic is done in F32 or wider. */
typedef int32_t esp_dtype;
#define ESP_F32 0
#define ESP_BF16 1
#define ESP_F16 2

/* Instruction set variants. */
#define ESP_ISA_SCALAR 0
#define ESP_ISA_AVX2 1
#define ESP_ISA_AVX512 2

/* The message of the last failure on the calling thread; never NULL, valid until the thread's next failing call. */
ESP_API const char* esp_last_error(void);

/* The best variant that this processor and operating system can run. */
ESP_API int32_t esp_isa_best(void);

/*
 * The variant in use: what esp_isa_set chose, else the environment variable ESPALIER_ISA (scalar, avx2, avx512), else
 * the best. Fails with ESP_UNSUPPORTED where ESPALIER_ISA names an unknown or unavailable variant; so does every
 * operation then.
 */
ESP_API esp_status esp_isa_current(int32_t* isa);

/* Chooses a variant for the whole process. ESP_UNSUPPORTED where the processor lacks it. */
ESP_API esp_status esp_isa_set(int32_t isa);

/* "scalar", "avx2", "avx512"; NULL for another number. */
ESP_API const char* esp_isa_name(int32_t isa);

/*
 * Threads that one call may use, the caller included. Starts as ESPALIER_THREADS where that is set, else as the number
 * of processors that the process may use (affinity mask and cgroup CPU limit). Fails with ESP_UNSUPPORTED where
 * ESPALIER_THREADS is not a number from 1 to 256; so does every operation then.
 */
ESP_API esp_status esp_threads_current(int32_t* threads);

/* 1 to 256. Takes effect with the next call. */
ESP_API esp_status esp_threads_set(int32_t threads);

/* Runs task(argument, i) for each i in [0, count), in any order, on any threads, and returns when all are done. */
typedef void (*esp_task)(void* argument, int64_t index);
typedef void (*esp_executor)(void* context, esp_task task, void* argument, int64_t count);

/* Replaces the built-in pool by the host's own; NULL brings the built-in pool back. Not while an operation runs. */
ESP_API void esp_executor_set(esp_executor executor, void* context);

/*
 * Zeroed memory aligned to 64 bytes, from 4 MiB on aligned to and advised for 2 MiB pages (10 to 25 % faster to
 * stream). bytes >= 0. Free with esp_release and the same size.
 */
ESP_API esp_status esp_allocate(int64_t bytes, void** memory);
ESP_API void esp_release(void* memory, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
