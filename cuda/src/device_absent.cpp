// Stands in for device.cu and the kernels where they are not compiled, so that the same bindings link; every call says why.
#include "espalier/cuda/fake_quantize_clip.h"
#include "espalier/cuda/fake_quantize_scale_gradient.h"
#include "espalier/cuda/fused_adamw.h"
#include "espalier/cuda/fused_sgd.h"
#include "espalier/cuda/gradient_norm.h"
#include "fake_quantize.h"
#include "kd_softmax_loss.h"
#include "espalier/cuda/magnitude_prune.h"
#include "espalier/device.h"
#include "status.h"

#define ABSENT(declaration)                                                                                            \
  esp_status declaration {                                                                                             \
    return esp::fail(ESP_UNSUPPORTED, "built without CUDA: " ESP_CUDA_ABSENT);                                     \
  }

esp_status esp_cuda_versions(int32_t* runtime, int32_t* driver) {
  *runtime = *driver = 0;
  return ESP_OK;
}
ABSENT(esp_cuda_device_count(int32_t*))
ABSENT(esp_cuda_device_info(int32_t, esp_cuda_device*))
ABSENT(esp_cuda_device_condition(int32_t, esp_cuda_condition*))
ABSENT(esp_cuda_device_set(int32_t))
ABSENT(esp_cuda_allocate(int64_t, void**))
ABSENT(esp_cuda_release(void*))
ABSENT(esp_cuda_host_allocate(int64_t, void**))
ABSENT(esp_cuda_host_release(void*))
ABSENT(esp_cuda_copy(void*, const void*, int64_t, void*))
ABSENT(esp_cuda_fill_zero(void*, int64_t, void*))
ABSENT(esp_cuda_stream_create(void**))
ABSENT(esp_cuda_stream_destroy(void*))
ABSENT(esp_cuda_stream_synchronize(void*))
ABSENT(esp_cuda_stream_wait(void*, void*))
ABSENT(esp_cuda_event_create(void**))
ABSENT(esp_cuda_event_destroy(void*))
ABSENT(esp_cuda_event_record(void*, void*))
ABSENT(esp_cuda_event_synchronize(void*))
ABSENT(esp_cuda_event_elapsed(void*, void*, float*))
ABSENT(esp_cuda_gradient_norm(const esp_cuda_plan*, const void*, void*, esp_gradient_norm_result*, void*))
ABSENT(esp_cuda_fake_quantize(const esp_cuda_plan*, const void*, void*, esp_cuda_quantize_result*, void*))
ABSENT(esp_cuda_fake_quantize_clip(const esp_cuda_plan*, const void*, void*, void*))
ABSENT(esp_cuda_fake_quantize_scale_gradient(const esp_cuda_plan*, const void*, void*, esp_cuda_scale_gradient_result*, void*))
ABSENT(esp::launch_fake_quantize_backward(const void*, const uint8_t*, void*, int64_t, esp_dtype, void*))
ABSENT(esp::launch_dequantize(const esp_dequantized&, int64_t, void*))
ABSENT(esp::device_limits(DeviceLimits*))
ABSENT(esp::launch_kd_softmax_loss(const KdCall&, const DeviceLimits&, void*))
ABSENT(esp_cuda_fused_adamw(const esp_cuda_plan*, const void*, void*, const esp_adamw_options*, int64_t*, esp_step_result*,
                            void*))
ABSENT(esp_cuda_fused_sgd(const esp_cuda_plan*, const void*, void*, const esp_sgd_options*, int32_t*, esp_step_result*, void*))
ABSENT(esp_cuda_magnitude_prune(const esp_cuda_plan*, const void*, void*, const esp_prune_rule*, esp_prune_result*, int64_t*,
                                void*))
