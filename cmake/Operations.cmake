# THE list of operations. Adding one is adding its name here and the files of the same name:
#   native/include/espalier/<name>.h, native/src/<name>.cpp (arguments, threads), native/src/<name>_kernel.{h,cpp}
#   (compiled once an instruction set), java/kernels op/<Name>.java, and in tests <Name>Reference, <Name>Test,
#   <Name>GoldenTest (where another library fixes the result: not for gradient_norm and linear, whose sums have
#   orders of their own, nor for activation and dp_accumulate), in benchmarks <Name>Benchmark. A test reads this list and names what is missing.
# On a GPU: cuda/include/espalier/cuda/<name>.h, cuda/src/<name>.cpp (arguments, planning), cuda/kernels/<name>.{h,cu},
#   tests/cuda/<name>_test.cpp; cuda/common/kernel.cuh says how.
set(ESP_OPERATIONS
  activation
  dp_accumulate
  fake_quantize
  gradient_norm
  fused_adamw
  fused_sgd
  kd_softmax_loss
  linear
  magnitude_prune
)

# Those that have CUDA kernels; of fake_quantize the gradients of scales and the search of the MSE observer apart,
# because they compute in double.
set(ESP_CUDA_OPERATIONS
  gradient_norm
  fake_quantize
  fake_quantize_clip
  fake_quantize_scale_gradient
  kd_softmax_loss
  fused_adamw
  fused_sgd
  magnitude_prune
)
# Of them those whose kernels may compute in double, because the result is defined so.
set(ESP_CUDA_DOUBLE fake_quantize_clip fake_quantize_scale_gradient fused_adamw fused_sgd gradient_norm kd_softmax_loss)
