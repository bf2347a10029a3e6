/*
 * CUDA devices: probe, memory, streams and events. The library links the CUDA runtime statically and loads without a
 * driver; every function then fails with ESP_UNSUPPORTED and says why. Conventions: common.h, with its own error text.
 *
 * Pointers are device addresses; a stream is a cudaStream_t, NULL the default stream; an event is a cudaEvent_t. Functions
 * that take a stream return when the work is queued. The current device is a property of the calling thread.
 */
#ifndef ESPALIER_DEVICE_H
#define ESPALIER_DEVICE_H

#include "espalier/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_cuda_device {
  char name[256];
  int64_t memory_bytes;
  int32_t major; /* compute capability */
  int32_t minor;
  int32_t multiprocessors;
} esp_cuda_device;

/* What NVML says of a device at this moment; -1: this device does not tell. */
typedef struct esp_cuda_condition {
  char driver[80]; /* version, "" where unknown */
  int32_t sm_megahertz;
  int32_t memory_megahertz;
  int32_t celsius;
  int32_t milliwatts;
  int64_t memory_used_bytes;
  int64_t memory_bytes;
} esp_cuda_condition;

/* The message of the last failure of this library on the calling thread. */
ESP_API const char* esp_cuda_last_error(void);

/*
 * Number of usable devices (>= 1), or ESP_UNSUPPORTED with the reason: no driver, too old a driver, no device, too old a
 * device (below compute capability 7.5).
 */
ESP_API esp_status esp_cuda_device_count(int32_t* count);
ESP_API esp_status esp_cuda_device_info(int32_t device, esp_cuda_device* info);
/* ESP_UNSUPPORTED with the reason where the driver's libnvidia-ml.so.1 cannot be used. Costs milliseconds at its first call. */
ESP_API esp_status esp_cuda_device_condition(int32_t device, esp_cuda_condition* condition);
ESP_API esp_status esp_cuda_device_set(int32_t device);

/* CUDA versions as 1000 * major + 10 * minor; driver 0 where none is installed, both 0 in a build without CUDA. */
ESP_API esp_status esp_cuda_versions(int32_t* runtime, int32_t* driver);

/* Device memory. bytes >= 0; 0 gives NULL. */
ESP_API esp_status esp_cuda_allocate(int64_t bytes, void** memory);
ESP_API esp_status esp_cuda_release(void* memory);
/* Page-locked host memory, which copies need to run beside kernels. */
ESP_API esp_status esp_cuda_host_allocate(int64_t bytes, void** memory);
ESP_API esp_status esp_cuda_host_release(void* memory);
/* Either side may be host or device memory; what is the host's must stay as it is until the copy is done, pageable too. */
ESP_API esp_status esp_cuda_copy(void* destination, const void* source, int64_t bytes, void* stream);
ESP_API esp_status esp_cuda_fill_zero(void* memory, int64_t bytes, void* stream);

ESP_API esp_status esp_cuda_stream_create(void** stream);
ESP_API esp_status esp_cuda_stream_destroy(void* stream);
ESP_API esp_status esp_cuda_stream_synchronize(void* stream);
ESP_API esp_status esp_cuda_stream_wait(void* stream, void* event);

ESP_API esp_status esp_cuda_event_create(void** event);
ESP_API esp_status esp_cuda_event_destroy(void* event);
ESP_API esp_status esp_cuda_event_record(void* event, void* stream);
ESP_API esp_status esp_cuda_event_synchronize(void* event);
/* Milliseconds between two recorded events that have happened. */
ESP_API esp_status esp_cuda_event_elapsed(void* start, void* end, float* milliseconds);

#ifdef __cplusplus
}
#endif
#endif
