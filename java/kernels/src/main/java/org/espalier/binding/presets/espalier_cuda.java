package org.espalier.binding.presets;

import org.bytedeco.javacpp.annotation.Platform;
import org.bytedeco.javacpp.annotation.Properties;
import org.bytedeco.javacpp.tools.InfoMap;
import org.bytedeco.javacpp.tools.InfoMapper;

/** Parser and builder configuration of the CUDA library; a new operation adds its header here. */
@Properties(
    inherit = espalier.class,
    value =
        @Platform(
            value = "linux-x86_64",
            include = {
              "espalier/device.h",
              "espalier/cuda/plan.h",
              "espalier/cuda/gradient_norm.h",
              "espalier/cuda/fake_quantize.h",
              "espalier/cuda/fake_quantize_clip.h",
              "espalier/cuda/fake_quantize_scale_gradient.h",
              "espalier/cuda/fused_adamw.h",
              "espalier/cuda/fused_sgd.h",
              "espalier/cuda/kd_softmax_loss.h",
              "espalier/cuda/magnitude_prune.h",
            },
            link = "espalier_cuda"),
    target = "org.espalier.binding",
    global = "org.espalier.binding.global.espalier_cuda")
public class espalier_cuda implements InfoMapper {
  @Override
  public void map(InfoMap infoMap) {
    new espalier().map(infoMap);
  }
}
