package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.LinkedHashSet;
import java.util.Objects;
import java.util.Set;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Constants of a model that stand for −∞, in masks as a rule: float16 does not hold them, and its own −∞ times 0 would be NaN. A
 * number takes their place whose exponential is 0 and of which two may be added.
 */
final class MaskConstants {
  /** From here on down a number is none. */
  private static final float LEAST_NUMBER = -1e6f;

  private static final float MASKED = -8e3f;

  /** The values that have them: constants, and what shapes are filled with. */
  private final Set<String> values = new LinkedHashSet<>();

  /** Whether a number stands for −∞. */
  static boolean isOne(float number) {
    return number <= LEAST_NUMBER;
  }

  void add(String value) {
    values.add(value);
  }

  /** The values that have them. */
  Set<String> values() {
    return values;
  }

  /** Puts the other number into a model in which they are. */
  void replace(OnnxModel target) {
    target.replaceConstants(
        values.stream()
            .map(target::constant)
            .filter(Objects::nonNull)
            .map(MaskConstants::masked)
            .toList());
    target.setNodes(target.nodes().stream().map(this::masked).toList());
  }

  /** A node whose shape is filled with another number. */
  private NodeProto masked(NodeProto n) {
    NodeProto.Builder b = InnerGraphs.withEachNode(n, this::masked).toBuilder();
    if (OnnxModel.isOwn(n, "ConstantOfShape") && values.contains(n.getOutput(0))) {
      OnnxInitializer filling = OnnxInitializer.ofMessage(Attributes.find(n, "value").getT());
      b.clearAttribute().addAttribute(Attributes.attribute("value", masked(filling)));
    }
    return b.build();
  }

  private static OnnxInitializer masked(OnnxInitializer c) {
    float[] numbers = new float[Math.toIntExact(c.elements())];
    c.floats().get(numbers);
    for (int i = 0; i < numbers.length; i++) {
      numbers[i] = numbers[i] < -HalfFloats.LARGEST_FLOAT16 ? MASKED : numbers[i];
    }
    return OnnxInitializer.floats(c.name(), c.dims(), numbers);
  }
}
