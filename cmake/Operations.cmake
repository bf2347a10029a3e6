# THE list of operations. Adding one is adding its name here and the files of the same name:
#   native/include/espalier/<name>.h, native/src/<name>.cpp (arguments, threads), native/src/<name>_kernel.{h,cpp}
#   (compiled once an instruction set), java/kernels op/<Name>.java, and in tests <Name>Reference, <Name>Test,
#   <Name>GoldenTest (where another library fixes the result: not for gradient_norm, whose sum has an order of its own),
#   in benchmarks <Name>Benchmark. A test reads this list and names what is missing.
set(ESP_OPERATIONS
  fake_quantize
  gradient_norm
  fused_adamw
  fused_sgd
  kd_softmax_loss
  magnitude_prune
)
