package org.espalier.binding.presets;

import org.bytedeco.javacpp.annotation.Platform;
import org.bytedeco.javacpp.annotation.Properties;
import org.bytedeco.javacpp.tools.Info;
import org.bytedeco.javacpp.tools.InfoMap;
import org.bytedeco.javacpp.tools.InfoMapper;

/** Parser and builder configuration of the CPU library; a new operation adds its header here. */
@Properties(
    value =
        @Platform(
            value = "linux-x86_64",
            include = {
              "espalier/common.h",
              "espalier/activation.h",
              "espalier/bandwidth.h",
              "espalier/dp_accumulate.h",
              "espalier/fake_quantize.h",
              "espalier/gradient_norm.h",
              "espalier/working_copy.h",
              "espalier/step_noise.h",
              "espalier/step_result.h",
              "espalier/fused_adamw.h",
              "espalier/fused_sgd.h",
              "espalier/kd_softmax_loss.h",
              "espalier/linear.h",
              "espalier/magnitude_prune.h",
              "espalier/mapped_file.h",
            },
            link = "espalier"),
    target = "org.espalier.binding",
    global = "org.espalier.binding.global.espalier")
public class espalier implements InfoMapper {
  @Override
  public void map(InfoMap infoMap) {
    infoMap
        .put(new Info("ESP_API").cppTypes().annotations())
        .put(
            new Info("esp_status", "esp_dtype").cast().valueTypes("int").pointerTypes("IntPointer"))
        // float[] overloads would copy; the host's memory is used in place.
        .put(new Info("float").valueTypes("float").pointerTypes("FloatPointer"))
        .put(new Info("double").valueTypes("double").pointerTypes("DoublePointer"))
        .put(new Info("int32_t").cast().valueTypes("int").pointerTypes("IntPointer"))
        .put(new Info("int64_t").cast().valueTypes("long").pointerTypes("LongPointer"))
        .put(new Info("uint8_t").cast().valueTypes("byte").pointerTypes("BytePointer"));
  }
}
