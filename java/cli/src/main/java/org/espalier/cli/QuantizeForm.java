package org.espalier.cli;

import java.util.Optional;
import org.espalier.InputException;
import org.espalier.format.safetensors.SafetensorsDtype;

/** What {@code quantize} can make of a model. */
enum QuantizeForm {
  ONNX_DYNAMIC("onnx-dynamic"),
  ONNX_QDQ("onnx-qdq"),
  ONNX_INT4("onnx-int4"),
  ONNX_INT8("onnx-int8"),
  ONNX_FLOAT16("onnx-float16"),
  COMPRESSED_TENSORS("compressed-tensors"),
  COMPRESSED_TENSORS_INT4("compressed-tensors-int4"),
  COMPRESSED_TENSORS_FLOAT8("compressed-tensors-float8"),
  FLOAT16("float16"),
  BFLOAT16("bfloat16");

  private final String option;

  QuantizeForm(String option) {
    this.option = option;
  }

  /** What --to calls it. */
  String option() {
    return option;
  }

  /** Whether weights alone are quantized, a block of input channels with a scale of its own. */
  boolean hasBlocks() {
    return this == ONNX_INT4 || this == ONNX_INT8;
  }

  /** Of a weight. */
  int bits() {
    return this == ONNX_INT4 || this == COMPRESSED_TENSORS_INT4 ? 4 : 8;
  }

  /**
   * The form that --to names.
   *
   * @throws InputException where there is none
   */
  static QuantizeForm parse(String text) {
    for (QuantizeForm form : values()) {
      if (form.option.equals(text)) {
        return form;
      }
    }
    throw new InputException(
        "--to "
            + text
            + " is none of onnx-dynamic, onnx-qdq, onnx-int4, onnx-int8, onnx-float16,"
            + " compressed-tensors, compressed-tensors-int4, compressed-tensors-float8, float16 and"
            + " bfloat16");
  }

  /** Whether it is made of safetensors, else of ONNX. */
  boolean isCheckpoint() {
    return isLinear() || halves() != null;
  }

  /** What does the same to models of the other format, where it has that name. */
  Optional<QuantizeForm> sibling() {
    return switch (this) {
      case FLOAT16 -> Optional.of(ONNX_FLOAT16);
      case ONNX_FLOAT16 -> Optional.of(FLOAT16);
      default -> Optional.empty();
    };
  }

  /** Whether a checkpoint's linear layers are made smaller, and nothing else. */
  boolean isLinear() {
    return this == COMPRESSED_TENSORS
        || this == COMPRESSED_TENSORS_INT4
        || this == COMPRESSED_TENSORS_FLOAT8;
  }

  /** The type that tensors of a checkpoint are rounded to; null where they are not. */
  SafetensorsDtype halves() {
    return switch (this) {
      case FLOAT16 -> SafetensorsDtype.F16;
      case BFLOAT16 -> SafetensorsDtype.BF16;
      default -> null;
    };
  }
}
